// Byte pair encoding: the pair of least rank is merged first, of equal ranks the leftmost; O(n log n).
#pragma once

#include "text/tables.h"

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

namespace phi3mobile {

// A part of a word: bytes start to stop of its text. An id below 0: it went into the part before it.
struct Part {
  int32_t id;
  uint32_t start, stop;
};

// Merges neighbours in place. ranked(left part, right part) gives a const Merge*, null: they stay apart.
template <class Ranked>
void merge_parts(std::vector<Part>& parts, Ranked ranked) {
  struct Offer {
    Merge merge;
    uint32_t left;
    int32_t first, second;
    bool operator<(const Offer& other) const {  // of the heap, whose top is the greatest
      return std::tie(other.merge.rank, other.left) < std::tie(merge.rank, left);
    }
  };
  const uint32_t end = uint32_t(parts.size());
  if (end < 2) return;
  std::vector<uint32_t> after(end), before(end);
  std::vector<Offer> heap;
  const auto offer = [&](uint32_t left, uint32_t right, bool ordered) {
    if (const Merge* found = ranked(parts[left], parts[right])) {
      heap.push_back({*found, left, parts[left].id, parts[right].id});
      if (ordered) std::push_heap(heap.begin(), heap.end());
    }
  };
  for (uint32_t at = 0; at < end; ++at) {
    after[at] = at + 1;
    before[at] = at - 1;  // of the first: none, a number past the end
    if (at + 1 < end) offer(at, at + 1, false);
  }
  std::make_heap(heap.begin(), heap.end());
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end());
    const Offer best = heap.back();
    heap.pop_back();
    const uint32_t left = best.left, right = after[left];
    if (parts[left].id != best.first || right >= end || parts[right].id != best.second) continue;  // merged with another
    parts[left].id = best.merge.id;
    parts[left].stop = parts[right].stop;
    parts[right].id = -1;
    after[left] = after[right];
    if (after[left] < end) {
      before[after[left]] = left;
      offer(left, after[left], true);
    }
    if (before[left] < end) offer(before[left], left, true);
  }
  parts.erase(std::remove_if(parts.begin(), parts.end(), [](const Part& part) { return part.id < 0; }), parts.end());
}

}  // namespace phi3mobile
