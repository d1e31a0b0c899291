// A matrix of 4- or 8-bit codes cut into tiles of 16 rows, and its product with rows of int8 codes.
//
// 4 bit: weight[n, k] = (code - 8) * scale of its group; the groups of a row have 32, 64, ... columns. With offsets, + offset
// of the group, which is an 8-bit code times the row's step. 8 bit: weight[n, k] = code * scale of the row. A tile is, at
// multiples of 64:
//   4 bit: for each group 16 bfloat16: its scales, row after row; then padding. 8 bit: 16 float32, the rows' scales
//   with offsets: 16 float32, the rows' steps; for each group 16 int8, its offsets' codes; then padding
//   4 bit: for each 32 columns 256 bytes: byte 64 v + 4 n + i holds row n, column 4 v + i in its low half, column 16 + 4 v + i
//   in its high half, so that one vector of 16 lanes has four columns of 16 rows, whatever multiplies it
//   8 bit: for each 4 columns 64 bytes: byte 4 n + i holds row n, column i
// Rows past the last one are zeros. The same bytes serve every processor: a bundle's file is used as it lies.
#pragma once

#include <cstdint>

namespace phi3mobile {

constexpr int64_t kTile = 16;   // rows
constexpr int64_t kCodes = 32;  // columns that are multiplied in integers at once

constexpr int64_t whole_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

struct TileForm {
  int64_t width, group;  // 8 bit: group is width
  int bits = 4;
  bool offsets = false;

  constexpr int64_t groups() const { return width / group; }
  // Where the parts of a tile begin, in bytes.
  constexpr int64_t steps_at() const {
    return (bits == 8 ? kTile * 4 : whole_lines(groups() * kTile * 2));
  }  // behind the scales
  constexpr int64_t offsets_at() const { return steps_at() + kTile * 4; }
  constexpr int64_t codes_at() const { return offsets ? offsets_at() + whole_lines(groups() * kTile) : steps_at(); }
  constexpr int64_t bytes() const { return codes_at() + kTile * width * bits / 8; }
  // Of a matrix of so many rows.
  constexpr int64_t tiles(int64_t rows) const { return (rows + kTile - 1) / kTile; }
  constexpr int64_t matrix_bytes(int64_t rows) const { return tiles(rows) * bytes(); }
  // Whether a matrix can have it.
  constexpr bool sensible() const {
    const bool groups_fit = group > 0 && group % kCodes == 0 && width % group == 0 && width <= 1 << 20;
    return groups_fit && (bits == 4 || (bits == 8 && group == width && !offsets));
  }
};

// x [width] rounded: x[k] = codes[k] * scale of its 32 columns. sums: 8 * the sum of 32 codes; values: scale * the sum.
struct CodedRow {
  const int8_t* codes;
  const int32_t* sums;
  const float *scales, *values;
};

// Rounds 32 values each to steps of their largest, as models/quantized.quantize_activation does of groups.
void code_row(const float* x, int64_t width, int8_t* codes, int32_t* sums, float* scales, float* values);

// out [count, 16]: the rows times a tile. A result has the same bits whatever `count` is.
void multiply_tile(const uint8_t* tile, const TileForm& form, const CodedRow* rows, int64_t count, float* out);

// The best that the machine has up to an instruction set of attention.h's; null: up to any.
void use_tiles(const char* isa);

}  // namespace phi3mobile
