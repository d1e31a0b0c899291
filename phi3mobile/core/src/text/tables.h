// Tables that a tokenizer looks things up in: texts by number and back, merges by pair, words with their ids.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace phi3mobile {

// Different texts, numbered from 0 in the order they came.
class Texts {
 public:
  static constexpr uint32_t kNone = uint32_t(-1);

  uint32_t add(std::string_view text);         // its number, a new one or the one it has
  uint32_t find(std::string_view text) const;  // kNone: it is not there
  std::string_view operator[](uint32_t number) const {
    return std::string_view(bytes_).substr(ends_[number], ends_[number + 1] - ends_[number]);
  }
  uint32_t size() const { return uint32_t(ends_.size() - 1); }

 private:
  struct Slot {
    uint32_t hash = 0, number = kNone;
  };

  size_t slot_of(std::string_view text, uint32_t hash) const;
  void grow();

  std::string bytes_;
  std::vector<size_t> ends_ = {0};
  std::vector<Slot> slots_ = std::vector<Slot>(16);  // a power of two, at most half full
};

struct Merge {
  uint32_t rank;
  int32_t id;  // what the pair becomes
};

// Pairs of ids with their merge.
class Merges {
 public:
  void reserve(size_t count);
  void add(int32_t left, int32_t right, Merge merge);  // of two equal pairs the first one counts; within what was reserved
  const Merge* find(int32_t left, int32_t right) const;

 private:
  struct Slot {
    uint64_t pair = uint64_t(-1);
    Merge merge = {};
  };

  size_t slot_of(uint64_t pair) const;

  std::vector<Slot> slots_ = std::vector<Slot>(2);  // a power of two, at most half full
};

// Ids of words that were met: of so many words, and of words so long.
class Words {
 public:
  // The word's ids, at *ids, *count of them; false: not met.
  bool find(std::string_view word, const int32_t** ids, size_t* count) const;
  void add(std::string_view word, const int32_t* ids, size_t count);

 private:
  static constexpr uint32_t kMost = 50'000;
  static constexpr size_t kLongest = 64;  // bytes

  Texts words_;
  std::vector<size_t> ends_ = {0};
  std::vector<int32_t> ids_;
};

}  // namespace phi3mobile
