// An opened .pte: what the C functions of phi3mobile.h work on.
#pragma once

#include "experts.h"
#include "phi3mobile.h"
#include "runtime_log.h"

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include <executorch/extension/module/module.h>
#include <executorch/runtime/core/hierarchical_allocator.h>

namespace phi3mobile {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// A method that computes, and its planned memory, which is ours, from calloc: a KV cache costs only the pages that were
// written, and starts as zeros.
struct Method {
  std::string name;
  std::vector<std::unique_ptr<void, Free>> buffers;
  std::vector<executorch::runtime::Span<uint8_t>> spans;
  std::unique_ptr<executorch::runtime::HierarchicalAllocator> planned;
};

// What a program may compute: a decoder, or one behind its embedding that takes rows of pictures, too, or a tower for these.
constexpr const char* kForward = "forward";
constexpr const char* kEmbed = "token_embedding";
constexpr const char* kDecode = "text_decoder";
constexpr const char* kMethods[] = {kForward, kEmbed, kDecode, "encode", "project"};

}  // namespace phi3mobile

struct p3m_model {
  std::unique_ptr<phi3mobile::Experts> experts;
  std::unique_ptr<executorch::extension::Module> module;
  std::vector<phi3mobile::Method> methods;
  phi3mobile::Log log;
  std::string error, packed_reason;
  int packed = P3M_PACKED_HEAP;
  bool takes_last_row = false;  // the program knows kLastRow (input_pos.h)
  const float* logits = nullptr;
  int64_t count = 0, vocab = 0;
};
