// Regular expressions over the characters of UTF-8, as tokenizers write them and phi3mobile/text/unicode_classes.py reads
// them: classes with \p{..}, \s, \d and \w, groups, (?i:), greedy, lazy and possessive repeats, lookahead, ^ $ \A \Z \b \B.
#pragma once

#include "text/unicode.h"

#include <array>
#include <bitset>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace phi3mobile {

// A set of characters: one bit each below 0x10000, ranges above.
class CharacterSet {
 public:
  explicit CharacterSet(const Ranges& ranges);
  bool has(uint32_t code) const { return code < 0x10000 ? bits_[code >> 6] >> (code & 63) & 1 : has_above(code); }
  bool beyond_ascii() const { return beyond_ascii_; }

 private:
  bool has_above(uint32_t code) const;

  std::vector<uint64_t> bits_;
  Ranges above_;
  bool beyond_ascii_ = false;
};

using FirstBytes = std::bitset<256>;

struct Instruction {
  enum Op : uint8_t {
    One,      // a character of `set`
    Many,     // least to most characters of `set`
    Fork,     // goes on, or at `to`; where the next byte is not in `first`, only at `to`
    Jump,     // goes on at `to`
    Ahead,    // what stands before `to` matches here (negative: does not); nothing is taken
    Atomic,   // what stands before `to`, the first way it matches
    Assert,   // `place` holds here
    Matched,  // the end of the pattern, or of what Ahead and Atomic hold
  } op;
  enum Mode : uint8_t { Greedy, Lazy, Possessive } mode = Greedy;  // Many; Fork: Lazy tries `to` first
  bool negative = false;
  char place = 0;  // '^', '$', 'A', 'Z', 'b', 'B'
  uint32_t to = 0, set = 0, least = 0, most = 0;
  int32_t first = -1;  // of Pattern::firsts; -1: any byte
};

class Pattern {
 public:
  // InputError: not understood, or not read by the core.
  explicit Pattern(std::string_view text);
  // A pattern that matches just this text.
  static Pattern literal(std::string_view text);

 private:
  friend class Matches;
  friend class Compiler;
  Pattern() = default;

  std::vector<CharacterSet> sets_;
  std::vector<FirstBytes> firsts_;
  std::vector<Instruction> code_;
  FirstBytes starts_;  // bytes that a match may start with
  bool may_be_empty_ = false;
};

// The matches of a pattern in a text, from left to right, apart, as Python's re.finditer gives them.
class Matches {
 public:
  Matches(const Pattern& pattern, std::string_view text) : pattern_(pattern), text_(text) {}
  bool next();  // whether there is one more: from `start` to `stop`. InputError: it takes too long to tell.
  size_t start = 0, stop = 0;

 private:
  struct Choice {  // where to go on after a dead end: at pc, from `low` up to `high` one character after the other
    uint32_t pc;
    uint32_t set;  // a lazy repeat takes one more of it
    size_t low, high;
    enum { Once, Shorter, Longer } kind;
  };

  size_t run(uint32_t pc, size_t at);
  bool retreat(size_t bottom, uint32_t& pc, size_t& at);
  bool holds(char place, size_t at) const;
  bool takes(const CharacterSet& set, size_t& at) const;

  const Pattern& pattern_;
  std::string_view text_;
  std::vector<Choice> choices_;
  size_t from_ = 0;
  size_t forbidden_ = size_t(-1);  // the match may not end here: an empty one was found
  size_t steps_ = 0;
};

}  // namespace phi3mobile
