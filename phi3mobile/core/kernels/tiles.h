// A matrix of 4-bit codes cut into tiles of 16 rows, and its product with rows of int8 codes: what an expert is computed with.
//
// weight[n, k] = (code - 8) * scale of its group; the groups of a row have 32, 64, ... columns. A tile is, at multiples of 64:
//   16 float32: the sums of a row's weights
//   for each group 16 bfloat16: its scales, row after row; then padding
//   for each 32 columns 256 bytes: byte 64 v + 4 n + i holds row n, column 4 v + i in its low half, column 16 + 4 v + i in its
//   high half, so that one vector of 16 lanes has four columns of 16 rows, whatever multiplies it
// Rows past the last one are zeros. The same bytes serve every processor: a bundle's file is used as it lies.
#pragma once

#include <cstdint>

namespace phi3mobile {

constexpr int64_t kTile = 16;   // rows
constexpr int64_t kCodes = 32;  // columns that are multiplied in integers at once

constexpr int64_t scales_bytes(int64_t width, int64_t group) { return (width / group * kTile * 2 + 63) / 64 * 64; }
constexpr int64_t tile_bytes(int64_t width, int64_t group) {
  return kTile * 4 + scales_bytes(width, group) + width / kCodes * kTile * kCodes / 2;
}
constexpr int64_t tiles_of(int64_t rows) { return (rows + kTile - 1) / kTile; }
constexpr int64_t matrix_bytes(int64_t rows, int64_t width, int64_t group) { return tiles_of(rows) * tile_bytes(width, group); }

// x [width] rounded: x[k] = (codes[k] - zero) * scale, and sums[b] = 8 * the sum of codes 32 b ... 32 b + 31.
struct CodedRow {
  const int8_t* codes;
  const int32_t* sums;
  float scale;
  int32_t zero;
};

// Rounds x to the int8 grid that spans it and zero, as models/quantized.quantize_activation does.
CodedRow code_row(const float* x, int64_t width, int8_t* codes, int32_t* sums);

// out [count, 16]: the rows times a tile. A result has the same bits whatever `count` is.
void multiply_tile(const uint8_t* tile, int64_t width, int64_t group, const CodedRow* rows, int64_t count, float* out);

// The best that the machine has up to an instruction set of attention.h's; null: up to any.
void use_tiles(const char* isa);

}  // namespace phi3mobile
