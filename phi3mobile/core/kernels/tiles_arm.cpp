// Products by tiles with Arm's dot product and, of several rows, its products of small matrices (i8mm).
#if defined(__aarch64__)
#include "tile_forms.h"

#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace phi3mobile {
namespace {

#define P3M_DOT __attribute__((target("arch=armv8.2-a+dotprod")))
#define P3M_I8MM __attribute__((target("arch=armv8.2-a+dotprod+i8mm")))

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
      const float32x4_t scale = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(tile.group_scales(g) + 4 * q), 16));
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

// 4 rows times half a tile: an instruction multiplies 8 columns of 2 rows of x and of 2 of the tile. Same bits as rows_dot.
P3M_I8MM void four_rows_i8mm(const View& tile, int half, const CodedRow* rows, float* out) {
  const uint8x16_t low_half = vdupq_n_u8(15);
  float32x4_t total[2][4];  // [pair of rows][pair of the half's 8 rows]: x0 w0, x0 w1, x1 w0, x1 w1
  for (int p = 0; p < 2; ++p) {
    for (int w = 0; w < 4; ++w) total[p][w] = vdupq_n_f32(0);
  }
  for (int64_t g = 0, b = 0; g < tile.groups; ++g) {
    int32x4_t sum[2][4];
    for (int p = 0; p < 2; ++p) {
      for (int w = 0; w < 4; ++w) sum[p][w] = vdupq_n_s32(0);
    }
    for (int64_t end = b + tile.blocks; b < end; ++b) {
      const uint8_t* codes = tile.codes + b * kBlockBytes + half * 32;
      prefetch(codes);
      for (int p = 0; p < 2; ++p) {
        const int32x4_t less = vcombine_s32(vdup_n_s32(rows[2 * p].sums[b]), vdup_n_s32(rows[2 * p + 1].sums[b]));
        for (int w = 0; w < 4; ++w) sum[p][w] = vsubq_s32(sum[p][w], less);
      }
      for (int c = 0; c < 2; ++c) {  // 8 columns of the low halves, 8 of the high ones
        int8x16_t x[2][2];
        for (int p = 0; p < 2; ++p) {
          const int8_t *first = rows[2 * p].codes + b * kCodes + 8 * c, *second = rows[2 * p + 1].codes + b * kCodes + 8 * c;
          x[p][0] = vcombine_s8(vld1_s8(first), vld1_s8(second));
          x[p][1] = vcombine_s8(vld1_s8(first + 16), vld1_s8(second + 16));
        }
        for (int q = 0; q < 2; ++q) {
          const uint32x4_t left = vreinterpretq_u32_u8(vld1q_u8(codes + 128 * c + 16 * q));
          const uint32x4_t right = vreinterpretq_u32_u8(vld1q_u8(codes + 128 * c + 64 + 16 * q));
          const uint8x16_t pairs[2] = {
              vreinterpretq_u8_u32(vzip1q_u32(left, right)), vreinterpretq_u8_u32(vzip2q_u32(left, right))};
          for (int w = 0; w < 2; ++w) {
            const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(pairs[w], low_half));
            const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(pairs[w], 4));
            for (int p = 0; p < 2; ++p) {
              sum[p][2 * q + w] = vmmlaq_s32(vmmlaq_s32(sum[p][2 * q + w], x[p][0], low), x[p][1], high);
            }
          }
        }
      }
    }
    for (int q = 0; q < 2; ++q) {
      const uint16x4_t bits = vld1_u16(tile.group_scales(g) + half * 8 + 4 * q);
      const float32x4_t scale = vreinterpretq_f32_u32(vshll_n_u16(bits, 16));
      const float32x4_t pairs[2] = {
          vcombine_f32(vget_low_f32(scale), vget_low_f32(scale)), vcombine_f32(vget_high_f32(scale), vget_high_f32(scale))};
      for (int w = 0; w < 2; ++w) {
        for (int p = 0; p < 2; ++p) {
          total[p][2 * q + w] = vfmaq_f32(total[p][2 * q + w], vcvtq_f32_s32(sum[p][2 * q + w]), pairs[w]);
        }
      }
    }
  }
  for (int p = 0; p < 2; ++p) {
    const CodedRow &first = rows[2 * p], &second = rows[2 * p + 1];
    const float32x4_t zero = vcombine_f32(vdup_n_f32(float(first.zero)), vdup_n_f32(float(second.zero)));
    const float32x4_t scale = vcombine_f32(vdup_n_f32(first.scale), vdup_n_f32(second.scale));
    for (int w = 0; w < 4; ++w) {
      const float32x2_t pair = vld1_f32(tile.sums + half * 8 + 2 * w);
      const float32x4_t y = vmulq_f32(vfmsq_f32(total[p][w], zero, vcombine_f32(pair, pair)), scale);
      float* to = out + 2 * p * kTile + half * 8 + 2 * w;
      vst1_f32(to, vget_low_f32(y)), vst1_f32(to + kTile, vget_high_f32(y));
    }
  }
}

void i8mm(const View& tile, const CodedRow* rows, int64_t count, float* out) {
  in_turns(rows, count, out, [&](const CodedRow* some, int64_t left, float* to) -> int64_t {
    if (left >= 4) return four_rows_i8mm(tile, 0, some, to), four_rows_i8mm(tile, 1, some, to), 4;
    if (left >= 2) return rows_dot<2>(tile, some, to), 2;
    return rows_dot<1>(tile, some, to), 1;
  });
}

void dotprod(const View& tile, const CodedRow* rows, int64_t count, float* out) {
  in_turns(rows, count, out, [&](const CodedRow* some, int64_t left, float* to) -> int64_t {
    if (left >= 4) return rows_dot<4>(tile, some, to), 4;
    if (left >= 2) return rows_dot<2>(tile, some, to), 2;
    return rows_dot<1>(tile, some, to), 1;
  });
}

// The same of a tile of 8-bit codes.
template <int N>
P3M_DOT void rows8_dot(const View& tile, const CodedRow* rows, float* out) {
  int32x4_t sum[N][4];
  for (int r = 0; r < N; ++r) {
    for (int q = 0; q < 4; ++q) sum[r][q] = vdupq_n_s32(0);
  }
  for (int64_t k = 0; k < tile.width; k += 4) {
    const uint8_t* codes = tile.codes + k * kTile;
    __builtin_prefetch(codes + 2048);
    int8x16_t four[4];
    for (int q = 0; q < 4; ++q) four[q] = vreinterpretq_s8_u8(vld1q_u8(codes + 16 * q));
    for (int r = 0; r < N; ++r) {
      const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(four_codes(rows[r].codes + k)));
      for (int q = 0; q < 4; ++q) sum[r][q] = vdotq_s32(sum[r][q], four[q], x);
    }
  }
  for (int r = 0; r < N; ++r) {
    for (int q = 0; q < 4; ++q) {
      const float32x4_t total = vmulq_f32(vcvtq_f32_s32(sum[r][q]), vld1q_f32(tile.row_scales() + 4 * q));
      const float32x4_t y = vfmsq_f32(total, vdupq_n_f32(float(rows[r].zero)), vld1q_f32(tile.sums + 4 * q));
      vst1q_f32(out + r * kTile + 4 * q, vmulq_n_f32(y, rows[r].scale));
    }
  }
}

void dotprod_8(const View& tile, const CodedRow* rows, int64_t count, float* out) {
  in_turns(rows, count, out, [&](const CodedRow* some, int64_t left, float* to) -> int64_t {
    if (left >= 4) return rows8_dot<4>(tile, some, to), 4;
    if (left >= 2) return rows8_dot<2>(tile, some, to), 2;
    return rows8_dot<1>(tile, some, to), 1;
  });
}

void add_pairs(const int8_t* codes, const int16_t* sums, int64_t pairs, int32_t* total) {
  int32x4_t sum[4];
  for (int q = 0; q < 4; ++q) sum[q] = vld1q_s32(total + 4 * q);
  for (int64_t p = 0; p < pairs; ++p) {
    for (int half = 0; half < 2; ++half) {
      const int8x8x2_t both = vld2_s8(codes + p * 2 * kTile + half * kTile);  // of 8 rows: the first group's, the second's
      for (int g = 0; g < 2; ++g) {
        const int16x8_t wide = vmovl_s8(both.val[g]);
        sum[2 * half] = vmlal_n_s16(sum[2 * half], vget_low_s16(wide), sums[2 * p + g]);
        sum[2 * half + 1] = vmlal_n_s16(sum[2 * half + 1], vget_high_s16(wide), sums[2 * p + g]);
      }
    }
  }
  for (int q = 0; q < 4; ++q) vst1q_s32(total + 4 * q, sum[q]);
}

bool has_dotprod() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) & (1 << 20);  // HWCAP_ASIMDDP
#else
  return true;  // every Apple processor since 2018
#endif
}

bool has_i8mm() {
#if defined(__linux__)
  return getauxval(AT_HWCAP2) & (1 << 13);  // HWCAP2_I8MM
#elif defined(__APPLE__)
  int has = 0;
  size_t size = sizeof has;
  return sysctlbyname("hw.optional.arm.FEAT_I8MM", &has, &size, nullptr, 0) == 0 && has;
#else
  return false;
#endif
}

}  // namespace

Products fastest_products(const char* isa) {
  if (isa != nullptr || !has_dotprod()) return {};
  return {has_i8mm() ? i8mm : dotprod, dotprod_8, add_pairs};
}

}  // namespace phi3mobile
#endif
