// What a pattern says, as a tree: between its text and its instructions.
#pragma once

#include "text/pattern.h"

#include <cstdint>
#include <string_view>
#include <vector>

namespace phi3mobile {

constexpr uint32_t kEndless = uint32_t(-1);

struct Node {
  enum Kind { Nothing, Set, Sequence, Either, Repeat, Ahead, Atomic, Assert } kind = Nothing;
  std::vector<Node> parts;
  Ranges set;
  uint32_t least = 0, most = 0;
  Instruction::Mode mode = Instruction::Greedy;
  bool negative = false;
  char place = 0;
};

Node set_of(Ranges ranges);

// InputError: not understood, or not read by the core.
Node parsed(std::string_view pattern);

}  // namespace phi3mobile
