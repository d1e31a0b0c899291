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
    int32_t sum[kTile] = {};
    for (int64_t end = b + tile.blocks; b < end; ++b) {
      const uint8_t* codes = tile.codes + b * kBlockBytes;
      const int8_t* x = row.codes + b * kCodes;
      for (int64_t v = 0; v < 4; ++v) {
        for (int64_t n = 0; n < kTile; ++n) {
          for (int64_t i = 0; i < 4; ++i) {
            const int code = codes[64 * v + 4 * n + i];
            sum[n] += (code & 15) * x[4 * v + i] + (code >> 4) * x[16 + 4 * v + i];
          }
        }
      }
      for (int64_t n = 0; n < kTile; ++n) sum[n] -= row.sums[b];
    }
    const uint16_t* scales = tile.group_scales(g);
    for (int64_t n = 0; n < kTile; ++n) total[n] += float(sum[n]) * from_bfloat16(scales[n]);
  }
  for (int64_t n = 0; n < kTile; ++n) out[n] = row.scale * (total[n] - float(row.zero) * tile.sums[n]);
}

void multiply8_plainly(const View& tile, const CodedRow& row, float* out) {
  int32_t sum[kTile] = {};
  for (int64_t k = 0; k < tile.width; k += 4) {
    const auto* codes = reinterpret_cast<const int8_t*>(tile.codes + k * kTile);
    for (int64_t n = 0; n < kTile; ++n) {
      for (int64_t i = 0; i < 4; ++i) sum[n] += codes[4 * n + i] * row.codes[k + i];
    }
  }
  for (int64_t n = 0; n < kTile; ++n) {
    out[n] = row.scale * (float(sum[n]) * tile.row_scales()[n] - float(row.zero) * tile.sums[n]);
  }
}

template <void (*one)(const View&, const CodedRow&, float*)>
void baseline(const View& tile, const CodedRow* rows, int64_t count, float* out) {
  for (int64_t r = 0; r < count; ++r) one(tile, rows[r], out + r * kTile);
}

void add_pairs_plainly(const int8_t* codes, const int16_t* sums, int64_t pairs, int32_t* total) {
  for (int64_t p = 0; p < pairs; ++p, codes += 2 * kTile) {
    for (int64_t n = 0; n < kTile; ++n) total[n] += codes[2 * n] * sums[2 * p] + codes[2 * n + 1] * sums[2 * p + 1];
  }
}

// What the offsets of the groups add to a row: their codes times the sums of the row's groups are whole numbers.
void add_offsets(const uint8_t* tile, const TileForm& form, AddPairs add_pairs, const CodedRow& row, float* out) {
  constexpr int64_t kAtOnce = 128;  // groups
  const auto* steps = reinterpret_cast<const float*>(tile + form.steps_at());
  const auto* codes = reinterpret_cast<const int8_t*>(tile + form.offsets_at());
  const int64_t blocks = form.group / kCodes, groups = form.groups();
  int32_t total[kTile] = {};
  for (int64_t first = 0; first < groups; first += kAtOnce) {
    const int64_t count = std::min(kAtOnce, groups - first), pairs = (count + 1) / 2;
    int16_t sums[kAtOnce] = {};
    for (int64_t g = 0; g < count; ++g) {
      int32_t sum = -8 * int32_t(form.group) * row.zero;
      for (int64_t b = 0; b < blocks; ++b) sum += row.sums[(first + g) * blocks + b];
      sums[g] = int16_t(sum >> 3);
    }
    add_pairs(codes + first * kTile, sums, pairs, total);
  }
  for (int64_t n = 0; n < kTile; ++n) out[n] += row.scale * steps[n] * float(total[n]);
}

// Half to even, without a call; |x| is at most 2**22 here.
inline float rounded(float x) {
  constexpr float shift = 12582912.0f;
  return (x + shift) - shift;
}

P3M_CLONES void range(const float* x, int64_t width, float* least, float* most) {
  float low[kTile] = {}, high[kTile] = {};
  for (int64_t k = 0; k < width; k += kTile) {
    for (int64_t i = 0; i < kTile; ++i) {
      low[i] = x[k + i] < low[i] ? x[k + i] : low[i];
      high[i] = x[k + i] > high[i] ? x[k + i] : high[i];
    }
  }
  *least = *std::min_element(low, low + kTile), *most = *std::max_element(high, high + kTile);
}

P3M_CLONES void encode(const float* x, int64_t width, float inverse, float zero, int8_t* codes, int32_t* sums) {
  for (int64_t b = 0; b < width / kCodes; ++b) {
    int32_t sum = 0;
    for (int64_t k = b * kCodes; k < (b + 1) * kCodes; ++k) {
      const float code = rounded(x[k] * inverse) + zero;
      const int32_t clamped = int32_t(code < -128.0f ? -128.0f : code > 127.0f ? 127.0f : code);
      codes[k] = int8_t(clamped), sum += clamped;
    }
    sums[b] = 8 * sum;
  }
}

Products find(const char* isa) {
  const Products found = fastest_products(isa);
  return found.by4 ? found : Products{baseline<multiply_plainly>, baseline<multiply8_plainly>, add_pairs_plainly};
}

std::atomic<Multiply> by4{find(nullptr).by4}, by8{find(nullptr).by8};
std::atomic<AddPairs> by_pairs{find(nullptr).add_pairs};

}  // namespace

CodedRow code_row(const float* x, int64_t width, int8_t* codes, int32_t* sums) {
  float least = 0, most = 0;
  range(x, width, &least, &most);
  const float scale = std::max((most - least) / 255.0f, 1.1920929e-7f);
  const float zero = std::min(std::max(-128.0f - rounded(least / scale), -128.0f), 127.0f);
  encode(x, width, 1.0f / scale, zero, codes, sums);
  return {codes, sums, scale, int32_t(zero)};
}

void multiply_tile(const uint8_t* tile, const TileForm& form, const CodedRow* rows, int64_t count, float* out) {
  (form.bits == 8 ? by8 : by4).load(std::memory_order_relaxed)(View(tile, form), rows, count, out);
  if (!form.offsets) return;
  const AddPairs add_pairs = by_pairs.load(std::memory_order_relaxed);
  for (int64_t r = 0; r < count; ++r) add_offsets(tile, form, add_pairs, rows[r], out + r * kTile);
}

void use_tiles(const char* isa) {
  const Products products = find(isa);
  by4 = products.by4, by8 = products.by8, by_pairs = products.add_pairs;
}

}  // namespace phi3mobile
