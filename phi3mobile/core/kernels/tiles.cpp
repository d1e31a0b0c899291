#include "tiles.h"
#include "processor.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#endif

namespace phi3mobile {
namespace {

constexpr int64_t kBlockBytes = kTile * kCodes / 2;

// The parts of a tile.
struct View {
  const float* sums;
  const uint16_t* scales;
  const uint8_t* codes;
  int64_t groups, blocks;  // blocks: of a group

  View(const uint8_t* tile, int64_t width, int64_t group)
      : sums(reinterpret_cast<const float*>(tile)),
        scales(reinterpret_cast<const uint16_t*>(tile + kTile * 4)),
        codes(tile + kTile * 4 + scales_bytes(width, group)),
        groups(width / group),
        blocks(group / kCodes) {}
};

// What comes next: decode waits for memory, and the processor's own guess stops at the end of a page.
inline void prefetch(const uint8_t* codes) {
  for (int64_t line = 0; line < kBlockBytes; line += 64) __builtin_prefetch(codes + 2048 + line);
}

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
    for (int64_t n = 0; n < kTile; ++n) total[n] += float(sum[n]) * from_bfloat16(tile.scales[g * kTile + n]);
  }
  for (int64_t n = 0; n < kTile; ++n) out[n] = row.scale * (total[n] - float(row.zero) * tile.sums[n]);
}

void baseline(const View& tile, const CodedRow* rows, int64_t count, float* out) {
  for (int64_t r = 0; r < count; ++r) multiply_plainly(tile, rows[r], out + r * kTile);
}

// As many rows at a time as the registers hold, then fewer.
template <class Some>
void in_turns(const CodedRow* rows, int64_t count, float* out, const Some& some) {
  while (count > 0) {
    const int64_t took = some(rows, count, out);
    rows += took, count -= took, out += took * kTile;
  }
}

#if defined(__x86_64__)
#define P3M_AVX2 __attribute__((target("avx2,fma")))
#define P3M_VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))

// N rows of codes times H halves of a tile. 8 products of at most 15 * 128 twice fit 16 bits, so a block needs one widening.
template <int N, int H>
P3M_AVX2 void rows_avx2(const View& tile, int first_half, const CodedRow* rows, float* out) {
  const __m256i low_half = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  const uint16_t* scales = tile.scales + first_half * 8;
  __m256 total[N][H];
  for (int r = 0; r < N; ++r) {
    for (int h = 0; h < H; ++h) total[r][h] = _mm256_setzero_ps();
  }
  for (int64_t g = 0, b = 0; g < tile.groups; ++g) {
    __m256i sum[N][H];
    for (int r = 0; r < N; ++r) {
      for (int h = 0; h < H; ++h) sum[r][h] = _mm256_setzero_si256();
    }
    for (int64_t end = b + tile.blocks; b < end; ++b) {
      const uint8_t* codes = tile.codes + b * kBlockBytes + first_half * 32;
      prefetch(codes);
      __m256i narrow[N][H];
      for (int r = 0; r < N; ++r) {
        for (int h = 0; h < H; ++h) narrow[r][h] = _mm256_setzero_si256();
      }
#pragma GCC unroll 1  // more, and GCC runs out of registers
      for (int v = 0; v < 4; ++v) {
        __m256i low[H], high[H];
        for (int h = 0; h < H; ++h) {
          const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 64 * v + 32 * h));
          low[h] = _mm256_and_si256(both, low_half);
          high[h] = _mm256_and_si256(_mm256_srli_epi16(both, 4), low_half);
        }
        for (int r = 0; r < N; ++r) {
          int32_t x[2];
          std::memcpy(x, rows[r].codes + b * kCodes + 4 * v, 4);
          std::memcpy(x + 1, rows[r].codes + b * kCodes + 16 + 4 * v, 4);
          const __m256i x_low = _mm256_set1_epi32(x[0]), x_high = _mm256_set1_epi32(x[1]);
          for (int h = 0; h < H; ++h) {
            const __m256i products =
                _mm256_add_epi16(_mm256_maddubs_epi16(low[h], x_low), _mm256_maddubs_epi16(high[h], x_high));
            narrow[r][h] = _mm256_add_epi16(narrow[r][h], products);
          }
        }
      }
      for (int r = 0; r < N; ++r) {
        const __m256i less = _mm256_set1_epi32(rows[r].sums[b]);
        for (int h = 0; h < H; ++h) {
          sum[r][h] = _mm256_add_epi32(sum[r][h], _mm256_sub_epi32(_mm256_madd_epi16(narrow[r][h], ones), less));
        }
      }
    }
    for (int h = 0; h < H; ++h) {
      const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales + g * kTile + h * 8));
      const __m256 scale = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
      for (int r = 0; r < N; ++r) total[r][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[r][h]), scale, total[r][h]);
    }
  }
  for (int h = 0; h < H; ++h) {
    const int at = (first_half + h) * 8;
    const __m256 sums = _mm256_loadu_ps(tile.sums + at);
    for (int r = 0; r < N; ++r) {
      const __m256 y = _mm256_fnmadd_ps(_mm256_set1_ps(float(rows[r].zero)), sums, total[r][h]);
      _mm256_storeu_ps(out + r * kTile + at, _mm256_mul_ps(_mm256_set1_ps(rows[r].scale), y));
    }
  }
}

void avx2(const View& tile, const CodedRow* rows, int64_t count, float* out) {
  in_turns(rows, count, out, [&](const CodedRow* some, int64_t left, float* to) -> int64_t {
    if (left == 1) return rows_avx2<1, 2>(tile, 0, some, to), 1;
    if (left < 4) return rows_avx2<2, 1>(tile, 0, some, to), rows_avx2<2, 1>(tile, 1, some, to), 2;
    return rows_avx2<4, 1>(tile, 0, some, to), rows_avx2<4, 1>(tile, 1, some, to), 4;
  });
}

template <int N>
P3M_VNNI void rows_vnni(const View& tile, const CodedRow* rows, float* out) {
  const __m512i low_half = _mm512_set1_epi8(15);
  __m512 total[N];
  for (int r = 0; r < N; ++r) total[r] = _mm512_setzero_ps();
  for (int64_t g = 0, b = 0; g < tile.groups; ++g) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(tile.scales + g * kTile));
    const __m512 scale = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    __m512i sum[N], other[N];  // two chains: the instruction takes several cycles
    for (int r = 0; r < N; ++r) sum[r] = other[r] = _mm512_setzero_si512();
    for (int64_t end = b + tile.blocks; b < end; ++b) {
      const uint8_t* codes = tile.codes + b * kBlockBytes;
      prefetch(codes);
      for (int r = 0; r < N; ++r) sum[r] = _mm512_sub_epi32(sum[r], _mm512_set1_epi32(rows[r].sums[b]));
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const __m512i both = _mm512_loadu_si512(codes + 64 * v);
        const __m512i low = _mm512_and_si512(both, low_half);
        const __m512i high = _mm512_and_si512(_mm512_srli_epi16(both, 4), low_half);
        for (int r = 0; r < N; ++r) {
          int32_t x[2];
          std::memcpy(x, rows[r].codes + b * kCodes + 4 * v, 4);
          std::memcpy(x + 1, rows[r].codes + b * kCodes + 16 + 4 * v, 4);
          sum[r] = _mm512_dpbusd_epi32(sum[r], low, _mm512_set1_epi32(x[0]));
          other[r] = _mm512_dpbusd_epi32(other[r], high, _mm512_set1_epi32(x[1]));
        }
      }
    }
    for (int r = 0; r < N; ++r) {
      total[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(sum[r], other[r])), scale, total[r]);
    }
  }
  const __m512 sums = _mm512_loadu_ps(tile.sums);
  for (int r = 0; r < N; ++r) {
    const __m512 y = _mm512_fnmadd_ps(_mm512_set1_ps(float(rows[r].zero)), sums, total[r]);
    _mm512_storeu_ps(out + r * kTile, _mm512_mul_ps(_mm512_set1_ps(rows[r].scale), y));
  }
}

void vnni(const View& tile, const CodedRow* rows, int64_t count, float* out) {
  in_turns(rows, count, out, [&](const CodedRow* some, int64_t left, float* to) -> int64_t {
    if (left >= 6) return rows_vnni<6>(tile, some, to), 6;
    if (left >= 3) return rows_vnni<3>(tile, some, to), 3;
    return rows_vnni<1>(tile, some, to), 1;
  });
}

#elif defined(__aarch64__)
#define P3M_DOT __attribute__((target("arch=armv8.2-a+dotprod")))

template <int N>
P3M_DOT void rows_dot(const View& tile, const CodedRow* rows, float* out) {
  const uint8x16_t low_half = vdupq_n_u8(15);
  float32x4_t total[N][4];
  for (int r = 0; r < N; ++r) {
    for (int q = 0; q < 4; ++q) total[r][q] = vdupq_n_f32(0);
  }
  for (int64_t g = 0, b = 0; g < tile.groups; ++g) {
    int32x4_t sum[N][4];
    for (int r = 0; r < N; ++r) {
      for (int q = 0; q < 4; ++q) sum[r][q] = vdupq_n_s32(0);
    }
    for (int64_t end = b + tile.blocks; b < end; ++b) {
      const uint8_t* codes = tile.codes + b * kBlockBytes;
      prefetch(codes);
      int8x16_t x[N][2];
      for (int r = 0; r < N; ++r) {
        x[r][0] = vld1q_s8(rows[r].codes + b * kCodes), x[r][1] = vld1q_s8(rows[r].codes + b * kCodes + 16);
        const int32x4_t less = vdupq_n_s32(rows[r].sums[b]);
        for (int q = 0; q < 4; ++q) sum[r][q] = vsubq_s32(sum[r][q], less);
      }
#define P3M_COLUMNS(v)                                                   \
  for (int q = 0; q < 4; ++q) {                                          \
    const uint8x16_t both = vld1q_u8(codes + 64 * v + 16 * q);           \
    const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(both, low_half)); \
    const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));     \
    for (int r = 0; r < N; ++r) {                                        \
      sum[r][q] = vdotq_laneq_s32(sum[r][q], low, x[r][0], v);           \
      sum[r][q] = vdotq_laneq_s32(sum[r][q], high, x[r][1], v);          \
    }                                                                    \
  }
      P3M_COLUMNS(0) P3M_COLUMNS(1) P3M_COLUMNS(2) P3M_COLUMNS(3)
#undef P3M_COLUMNS
    }
    for (int q = 0; q < 4; ++q) {
      const float32x4_t scale = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(tile.scales + g * kTile + 4 * q), 16));
      for (int r = 0; r < N; ++r) total[r][q] = vfmaq_f32(total[r][q], vcvtq_f32_s32(sum[r][q]), scale);
    }
  }
  for (int r = 0; r < N; ++r) {
    for (int q = 0; q < 4; ++q) {
      const float32x4_t y = vfmsq_f32(total[r][q], vdupq_n_f32(float(rows[r].zero)), vld1q_f32(tile.sums + 4 * q));
      vst1q_f32(out + r * kTile + 4 * q, vmulq_n_f32(y, rows[r].scale));
    }
  }
}

void dotprod(const View& tile, const CodedRow* rows, int64_t count, float* out) {
  in_turns(rows, count, out, [&](const CodedRow* some, int64_t left, float* to) -> int64_t {
    if (left >= 4) return rows_dot<4>(tile, some, to), 4;
    if (left >= 2) return rows_dot<2>(tile, some, to), 2;
    return rows_dot<1>(tile, some, to), 1;
  });
}

bool has_dotprod() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) & (1 << 20);  // HWCAP_ASIMDDP
#else
  return true;  // every Apple processor since 2018
#endif
}
#endif

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

using Multiply = void (*)(const View& tile, const CodedRow* rows, int64_t count, float* out);

Multiply find(const char* isa) {
  [[maybe_unused]] const auto up_to = [&](const char* name) { return isa == nullptr || std::strcmp(isa, name) == 0; };
#if defined(__x86_64__)
  if (has_avx512() && __builtin_cpu_supports("avx512vnni") && up_to("avx512")) return vnni;
  if (has_avx2() && (up_to("avx512") || up_to("avx2"))) return avx2;
#elif defined(__aarch64__)
  if (isa == nullptr && has_dotprod()) return dotprod;
#endif
  return baseline;
}

std::atomic<Multiply> chosen{find(nullptr)};

}  // namespace

CodedRow code_row(const float* x, int64_t width, int8_t* codes, int32_t* sums) {
  float least = 0, most = 0;
  range(x, width, &least, &most);
  const float scale = std::max((most - least) / 255.0f, 1.1920929e-7f);
  const float zero = std::min(std::max(-128.0f - rounded(least / scale), -128.0f), 127.0f);
  encode(x, width, 1.0f / scale, zero, codes, sums);
  return {codes, sums, scale, int32_t(zero)};
}

void multiply_tile(const uint8_t* tile, int64_t width, int64_t group, const CodedRow* rows, int64_t count, float* out) {
  chosen.load(std::memory_order_relaxed)(View(tile, width, group), rows, count, out);
}

void use_tiles(const char* isa) { chosen = find(isa); }

}  // namespace phi3mobile
