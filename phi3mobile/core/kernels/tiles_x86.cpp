// Products by tiles with AVX2 and AVX-512 VNNI.
#if defined(__x86_64__)
#include "processor.h"
#include "tile_forms.h"

#include <immintrin.h>

namespace phi3mobile {
namespace {

#define P3M_AVX2 __attribute__((target("avx2,fma")))
#define P3M_VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))

// N rows of codes times a tile, in two halves. 8 products of at most 15 * 128 twice fit 16 bits, so a block needs one widening.
template <int N>
P3M_AVX2 void rows_avx2(const View& tile, const CodedRow* rows, float* out) {
  const __m256i low_half = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  __m256 total[N][2];
  for (int r = 0; r < N; ++r) {
    for (int h = 0; h < 2; ++h) total[r][h] = _mm256_setzero_ps();
  }
  for (int64_t g = 0, b = 0; g < tile.groups; ++g) {
    __m256 scale[2];
    for (int h = 0; h < 2; ++h) {
      const auto* at = reinterpret_cast<const __m128i*>(tile.group_scales(g) + 8 * h);
      scale[h] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(at)), 16));
    }
    for (int64_t end = b + tile.blocks; b < end; ++b) {
      const uint8_t* codes = tile.codes + b * kBlockBytes;
      prefetch(codes);
      __m256i narrow[N][2];
      for (int r = 0; r < N; ++r) {
        for (int h = 0; h < 2; ++h) narrow[r][h] = _mm256_setzero_si256();
      }
#pragma GCC unroll 1  // more, and GCC runs out of registers
      for (int v = 0; v < 4; ++v) {
        __m256i low[2], high[2];
        for (int h = 0; h < 2; ++h) {
          const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 64 * v + 32 * h));
          low[h] = _mm256_and_si256(both, low_half);
          high[h] = _mm256_and_si256(_mm256_srli_epi16(both, 4), low_half);
        }
        for (int r = 0; r < N; ++r) {
          const int8_t* x = rows[r].codes + b * kCodes + 4 * v;
          const __m256i x_low = _mm256_set1_epi32(four_codes(x)), x_high = _mm256_set1_epi32(four_codes(x + 16));
          for (int h = 0; h < 2; ++h) {
            const __m256i products =
                _mm256_add_epi16(_mm256_maddubs_epi16(low[h], x_low), _mm256_maddubs_epi16(high[h], x_high));
            narrow[r][h] = _mm256_add_epi16(narrow[r][h], products);
          }
        }
      }
      for (int r = 0; r < N; ++r) {
        const __m256i less = _mm256_set1_epi32(rows[r].sums[b]);
        const __m256 x_scale = _mm256_set1_ps(rows[r].scales[b]);
        for (int h = 0; h < 2; ++h) {
          const __m256i sum = _mm256_sub_epi32(_mm256_madd_epi16(narrow[r][h], ones), less);
          total[r][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_mul_ps(scale[h], x_scale), total[r][h]);
        }
      }
    }
  }
  for (int r = 0; r < N; ++r) {
    for (int h = 0; h < 2; ++h) _mm256_storeu_ps(out + r * kTile + 8 * h, total[r][h]);
  }
}

void avx2(const View& tile, const CodedRow* rows, int64_t count, float* out) {
  in_turns<4, 2, 1>(rows, count, out, [&](auto n, const CodedRow* some, float* to) { rows_avx2<n>(tile, some, to); });
}

// The same of a tile of 8-bit codes: even and odd columns widened, so that no product of pairs saturates.
template <int N>
P3M_AVX2 void rows8_avx2(const View& tile, const CodedRow* rows, float* out) {
  __m256 total[N][2];
  for (int r = 0; r < N; ++r) total[r][0] = total[r][1] = _mm256_setzero_ps();
  for (int64_t b = 0; b < tile.width / kCodes; ++b) {
    __m256i sum[N][2];
    for (int r = 0; r < N; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 1
    for (int64_t k = b * kCodes; k < (b + 1) * kCodes; k += 4) {
      const uint8_t* codes = tile.codes + k * kTile;
      __builtin_prefetch(codes + 2048);
      __m256i even[2], odd[2];
      for (int h = 0; h < 2; ++h) {
        const __m256i four = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 32 * h));
        even[h] = _mm256_srai_epi16(_mm256_slli_epi16(four, 8), 8), odd[h] = _mm256_srai_epi16(four, 8);
      }
      for (int r = 0; r < N; ++r) {
        const __m256i x = _mm256_set1_epi32(four_codes(rows[r].codes + k));
        const __m256i x_even = _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8), x_odd = _mm256_srai_epi16(x, 8);
        for (int h = 0; h < 2; ++h) {
          const __m256i products = _mm256_add_epi32(_mm256_madd_epi16(even[h], x_even), _mm256_madd_epi16(odd[h], x_odd));
          sum[r][h] = _mm256_add_epi32(sum[r][h], products);
        }
      }
    }
    for (int r = 0; r < N; ++r) {
      const __m256 x_scale = _mm256_set1_ps(rows[r].scales[b]);
      for (int h = 0; h < 2; ++h) total[r][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[r][h]), x_scale, total[r][h]);
    }
  }
  for (int h = 0; h < 2; ++h) {
    const __m256 scales = _mm256_loadu_ps(tile.row_scales() + 8 * h);
    for (int r = 0; r < N; ++r) _mm256_storeu_ps(out + r * kTile + 8 * h, _mm256_mul_ps(total[r][h], scales));
  }
}

void avx2_8(const View& tile, const CodedRow* rows, int64_t count, float* out) {
  in_turns<4, 2, 1>(rows, count, out, [&](auto n, const CodedRow* some, float* to) { rows8_avx2<n>(tile, some, to); });
}

template <int N>
P3M_AVX2 void offsets_avx2(const View& tile, const CodedRow* rows, float* out) {
  __m256 total[N][2];
  for (int r = 0; r < N; ++r) total[r][0] = total[r][1] = _mm256_setzero_ps();
  for (int64_t g = 0, b = 0; g < tile.groups; ++g) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(tile.offsets + g * kTile));
    const __m256 low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
    const __m256 high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(codes, codes)));
    for (int64_t end = b + tile.blocks; b < end; ++b) {
      for (int r = 0; r < N; ++r) {
        const __m256 value = _mm256_set1_ps(rows[r].values[b]);
        total[r][0] = _mm256_fmadd_ps(low, value, total[r][0]), total[r][1] = _mm256_fmadd_ps(high, value, total[r][1]);
      }
    }
  }
  for (int h = 0; h < 2; ++h) {
    const __m256 steps = _mm256_loadu_ps(tile.steps + 8 * h);
    for (int r = 0; r < N; ++r) {
      float* to = out + r * kTile + 8 * h;
      _mm256_storeu_ps(to, _mm256_fmadd_ps(steps, total[r][h], _mm256_loadu_ps(to)));
    }
  }
}

void add_offsets(const View& tile, const CodedRow* rows, int64_t count, float* out) {
  in_turns<4, 1>(rows, count, out, [&](auto n, const CodedRow* some, float* to) { offsets_avx2<n>(tile, some, to); });
}

template <int N>
P3M_VNNI void rows_vnni(const View& tile, const CodedRow* rows, float* out) {
  const __m512i low_half = _mm512_set1_epi8(15);
  __m512 total[N];
  for (int r = 0; r < N; ++r) total[r] = _mm512_setzero_ps();
  for (int64_t g = 0, b = 0; g < tile.groups; ++g) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(tile.group_scales(g)));
    const __m512 scale = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    for (int64_t end = b + tile.blocks; b < end; ++b) {
      const uint8_t* codes = tile.codes + b * kBlockBytes;
      prefetch(codes);
      __m512i sum[N], other[N];  // two chains: the instruction takes several cycles
      for (int r = 0; r < N; ++r) {
        sum[r] = _mm512_set1_epi32(-rows[r].sums[b]), other[r] = _mm512_setzero_si512();
      }
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const __m512i both = _mm512_loadu_si512(codes + 64 * v);
        const __m512i low = _mm512_and_si512(both, low_half);
        const __m512i high = _mm512_and_si512(_mm512_srli_epi16(both, 4), low_half);
        for (int r = 0; r < N; ++r) {
          const int8_t* x = rows[r].codes + b * kCodes + 4 * v;
          sum[r] = _mm512_dpbusd_epi32(sum[r], low, _mm512_set1_epi32(four_codes(x)));
          other[r] = _mm512_dpbusd_epi32(other[r], high, _mm512_set1_epi32(four_codes(x + 16)));
        }
      }
      for (int r = 0; r < N; ++r) {
        const __m512 both = _mm512_cvtepi32_ps(_mm512_add_epi32(sum[r], other[r]));
        total[r] = _mm512_fmadd_ps(both, _mm512_mul_ps(scale, _mm512_set1_ps(rows[r].scales[b])), total[r]);
      }
    }
  }
  for (int r = 0; r < N; ++r) _mm512_storeu_ps(out + r * kTile, total[r]);
}

void vnni(const View& tile, const CodedRow* rows, int64_t count, float* out) {
  in_turns<6, 3, 1>(rows, count, out, [&](auto n, const CodedRow* some, float* to) { rows_vnni<n>(tile, some, to); });
}

// Of 8-bit codes: code + 128 is unsigned, as the instruction wants one factor, and 128 times the sum of x is taken away.
template <int N>
P3M_VNNI void rows8_vnni(const View& tile, const CodedRow* rows, float* out) {
  const __m512i flip = _mm512_set1_epi8(char(0x80));
  __m512 total[N];
  for (int r = 0; r < N; ++r) total[r] = _mm512_setzero_ps();
  for (int64_t b = 0; b < tile.width / kCodes; ++b) {
    __m512i sum[N];
    for (int r = 0; r < N; ++r) sum[r] = _mm512_set1_epi32(-16 * rows[r].sums[b]);
#pragma GCC unroll 8
    for (int64_t k = b * kCodes; k < (b + 1) * kCodes; k += 4) {
      const uint8_t* codes = tile.codes + k * kTile;
      __builtin_prefetch(codes + 2048);
      const __m512i four = _mm512_xor_si512(_mm512_loadu_si512(codes), flip);
      for (int r = 0; r < N; ++r) {
        sum[r] = _mm512_dpbusd_epi32(sum[r], four, _mm512_set1_epi32(four_codes(rows[r].codes + k)));
      }
    }
    for (int r = 0; r < N; ++r) {
      total[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r]), _mm512_set1_ps(rows[r].scales[b]), total[r]);
    }
  }
  const __m512 scales = _mm512_loadu_ps(tile.row_scales());
  for (int r = 0; r < N; ++r) _mm512_storeu_ps(out + r * kTile, _mm512_mul_ps(total[r], scales));
}

void vnni_8(const View& tile, const CodedRow* rows, int64_t count, float* out) {
  in_turns<6, 3, 1>(rows, count, out, [&](auto n, const CodedRow* some, float* to) { rows8_vnni<n>(tile, some, to); });
}

}  // namespace

Products fastest_products(const char* isa) {
  const auto up_to = [&](const char* name) { return isa == nullptr || std::strcmp(isa, name) == 0; };
  if (has_avx512() && __builtin_cpu_supports("avx512vnni") && up_to("avx512")) return {vnni, vnni_8, add_offsets};
  if (has_avx2() && (up_to("avx512") || up_to("avx2"))) return {avx2, avx2_8, add_offsets};
  return {};
}

}  // namespace phi3mobile
#endif
