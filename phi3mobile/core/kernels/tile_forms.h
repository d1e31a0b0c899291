// What the instruction sets' products by a tile (tiles_x86.cpp, tiles_arm.cpp) have in common.
#pragma once

#include "tiles.h"

#include <cstring>
#include <type_traits>

namespace phi3mobile {

constexpr int64_t kBlockBytes = kTile * kCodes / 2;  // 4 bit

// The parts of a tile.
struct View {
  const uint8_t* scales;
  const float* steps;     // with offsets: of their codes
  const int8_t* offsets;  // [groups, 16]
  const uint8_t* codes;
  int64_t width, groups, blocks;  // blocks: of a group

  View(const uint8_t* tile, const TileForm& form)
      : scales(tile),
        steps(reinterpret_cast<const float*>(tile + form.steps_at())),
        offsets(reinterpret_cast<const int8_t*>(tile + form.offsets_at())),
        codes(tile + form.codes_at()),
        width(form.width),
        groups(form.groups()),
        blocks(form.group / kCodes) {}

  const uint16_t* group_scales(int64_t group) const { return reinterpret_cast<const uint16_t*>(scales) + group * kTile; }
  const float* row_scales() const { return reinterpret_cast<const float*>(scales); }
};

// A product of rows by a tile, out [count, 16]; or what its offsets add to it.
using Multiply = void (*)(const View& tile, const CodedRow* rows, int64_t count, float* out);

struct Products {
  Multiply by4, by8, add_offsets;
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

// some(N, rows, out) of as many rows at a time as the registers hold, then of fewer: counts go down to 1.
template <int... counts, class Some>
void in_turns(const CodedRow* rows, int64_t left, float* out, const Some& some) {
  const auto turns = [&](auto count) {
    for (; left >= count; left -= count, rows += count, out += count * kTile) some(count, rows, out);
  };
  (turns(std::integral_constant<int, counts>{}), ...);
}

}  // namespace phi3mobile
