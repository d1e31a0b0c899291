// What the instruction sets' products by a tile (tiles_x86.cpp, tiles_arm.cpp) have in common.
#pragma once

#include "tiles.h"

#include <cstring>

namespace phi3mobile {

constexpr int64_t kBlockBytes = kTile * kCodes / 2;  // 4 bit

// The parts of a tile.
struct View {
  const float* sums;
  const uint8_t *scales, *codes;
  int64_t width, groups, blocks;  // blocks: of a group

  View(const uint8_t* tile, const TileForm& form)
      : sums(reinterpret_cast<const float*>(tile)),
        scales(tile + form.scales_at()),
        codes(tile + form.codes_at()),
        width(form.width),
        groups(form.groups()),
        blocks(form.group / kCodes) {}

  const uint16_t* group_scales(int64_t group) const { return reinterpret_cast<const uint16_t*>(scales) + group * kTile; }
  const float* row_scales() const { return reinterpret_cast<const float*>(scales); }
};

// A product of rows by a tile of one width of codes, without offsets: out [count, 16].
using Multiply = void (*)(const View& tile, const CodedRow* rows, int64_t count, float* out);

// What offsets add to a row: codes of `pairs` pairs of groups [pairs, 16, 2] times the sums of x [pairs, 2] -> total [16].
using AddPairs = void (*)(const int8_t* codes, const int16_t* sums, int64_t pairs, int32_t* total);

struct Products {
  Multiply by4, by8;
  AddPairs add_pairs;
};

// The best that this machine has up to an instruction set, null: up to any; nulls: plain C++.
Products fastest_products(const char* isa);

// What comes next: decode waits for memory, and the processor's own guess stops at the end of a page.
inline void prefetch(const uint8_t* codes) {
  for (int64_t line = 0; line < kBlockBytes; line += 64) __builtin_prefetch(codes + 2048 + line);
}

// Four codes of x as one lane.
inline int32_t four_codes(const int8_t* codes) {
  int32_t four;
  std::memcpy(&four, codes, 4);
  return four;
}

// As many rows at a time as the registers hold, then fewer.
template <class Some>
void in_turns(const CodedRow* rows, int64_t count, float* out, const Some& some) {
  while (count > 0) {
    const int64_t took = some(rows, count, out);
    rows += took, count -= took, out += took * kTile;
  }
}

}  // namespace phi3mobile
