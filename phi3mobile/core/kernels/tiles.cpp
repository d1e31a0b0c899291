#include "tiles.h"
#include "processor.h"
#include "tile_forms.h"

#include <algorithm>
#include <atomic>
#include <cmath>

namespace phi3mobile {

#if !defined(__x86_64__) && !defined(__aarch64__)
Products fastest_products(const char*) { return {}; }
#endif

namespace {

float from_bfloat16(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

void multiply_plainly(const View& tile, const CodedRow& row, float* out) {
  float total[kTile] = {};
  for (int64_t g = 0, b = 0; g < tile.groups; ++g) {
    const uint16_t* scales = tile.group_scales(g);
    for (int64_t end = b + tile.blocks; b < end; ++b) {
      const uint8_t* codes = tile.codes + b * kBlockBytes;
      const int8_t* x = row.codes + b * kCodes;
      int32_t sum[kTile] = {};
      for (int64_t v = 0; v < 4; ++v) {
        for (int64_t n = 0; n < kTile; ++n) {
          for (int64_t i = 0; i < 4; ++i) {
            const int code = codes[64 * v + 4 * n + i];
            sum[n] += (code & 15) * x[4 * v + i] + (code >> 4) * x[16 + 4 * v + i];
          }
        }
      }
      for (int64_t n = 0; n < kTile; ++n) {
        total[n] += float(sum[n] - row.sums[b]) * (from_bfloat16(scales[n]) * row.scales[b]);
      }
    }
  }
  std::memcpy(out, total, sizeof total);
}

void multiply8_plainly(const View& tile, const CodedRow& row, float* out) {
  float total[kTile] = {};
  for (int64_t b = 0; b < tile.width / kCodes; ++b) {
    int32_t sum[kTile] = {};
    for (int64_t k = b * kCodes; k < (b + 1) * kCodes; k += 4) {
      const auto* codes = reinterpret_cast<const int8_t*>(tile.codes + k * kTile);
      for (int64_t n = 0; n < kTile; ++n) {
        for (int64_t i = 0; i < 4; ++i) sum[n] += codes[4 * n + i] * row.codes[k + i];
      }
    }
    for (int64_t n = 0; n < kTile; ++n) total[n] += float(sum[n]) * row.scales[b];
  }
  for (int64_t n = 0; n < kTile; ++n) out[n] = total[n] * tile.row_scales()[n];
}

void add_offsets_plainly(const View& tile, const CodedRow& row, float* out) {
  float total[kTile] = {};
  for (int64_t b = 0; b < tile.groups * tile.blocks; ++b) {
    const int8_t* codes = tile.offsets + b / tile.blocks * kTile;
    for (int64_t n = 0; n < kTile; ++n) total[n] += float(codes[n]) * row.values[b];
  }
  for (int64_t n = 0; n < kTile; ++n) out[n] += tile.steps[n] * total[n];
}

template <void (*one)(const View&, const CodedRow&, float*)>
void baseline(const View& tile, const CodedRow* rows, int64_t count, float* out) {
  for (int64_t r = 0; r < count; ++r) one(tile, rows[r], out + r * kTile);
}

// Of the largest value. Rows of an embedding are small integers times a scale: with 127 many of them would lie between two
// codes, where the last bit of what came before decides.
constexpr float kSteps = 126.62f;

// Half to even, without a call; |x| is at most 2**22 here.
inline float rounded(float x) {
  constexpr float shift = 12582912.0f;
  return (x + shift) - shift;
}

Products find(const char* isa) {
  const Products found = fastest_products(isa);
  if (found.by4) return found;
  return {baseline<multiply_plainly>, baseline<multiply8_plainly>, baseline<add_offsets_plainly>};
}

std::atomic<Multiply> by4{find(nullptr).by4}, by8{find(nullptr).by8}, add_offsets{find(nullptr).add_offsets};

}  // namespace

P3M_CLONES void code_row(const float* x, int64_t width, int8_t* codes, int32_t* sums, float* scales, float* values) {
  for (int64_t b = 0; b < width / kCodes; ++b, x += kCodes, codes += kCodes) {
    float most[8] = {};
    for (int64_t k = 0; k < kCodes; ++k) most[k % 8] = std::max(most[k % 8], std::fabs(x[k]));
    const float scale = std::max(*std::max_element(most, most + 8) / kSteps, 1e-30f), inverse = 1.0f / scale;
    int32_t sum = 0;
    for (int64_t k = 0; k < kCodes; ++k) {
      const float code = rounded(x[k] * inverse);
      const int32_t clamped = int32_t(code < -127.0f ? -127.0f : code > 127.0f ? 127.0f : code);
      codes[k] = int8_t(clamped), sum += clamped;
    }
    sums[b] = 8 * sum, scales[b] = scale, values[b] = scale * float(sum);
  }
}

void multiply_tile(const uint8_t* tile, const TileForm& form, const CodedRow* rows, int64_t count, float* out) {
  const View view(tile, form);
  (form.bits == 8 ? by8 : by4).load(std::memory_order_relaxed)(view, rows, count, out);
  if (form.offsets) add_offsets.load(std::memory_order_relaxed)(view, rows, count, out);
}

void use_tiles(const char* isa) {
  const Products products = find(isa);
  by4 = products.by4, by8 = products.by8, add_offsets = products.add_offsets;
}

}  // namespace phi3mobile
