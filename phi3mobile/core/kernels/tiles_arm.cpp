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
    float32x4_t scale[4];
    for (int q = 0; q < 4; ++q) {
      scale[q] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(tile.group_scales(g) + 4 * q), 16));
    }
    for (int64_t end = b + tile.blocks; b < end; ++b) {
      const uint8_t* codes = tile.codes + b * kBlockBytes;
      prefetch(codes);
      int8x16_t x[N][2];
      int32x4_t sum[N][4];
      for (int r = 0; r < N; ++r) {
        x[r][0] = vld1q_s8(rows[r].codes + b * kCodes), x[r][1] = vld1q_s8(rows[r].codes + b * kCodes + 16);
        for (int q = 0; q < 4; ++q) sum[r][q] = vdupq_n_s32(-rows[r].sums[b]);
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
      P3M_COLUMNS(0);
      P3M_COLUMNS(1);
      P3M_COLUMNS(2);
      P3M_COLUMNS(3);
#undef P3M_COLUMNS
      for (int r = 0; r < N; ++r) {
        for (int q = 0; q < 4; ++q) {
          total[r][q] = vfmaq_f32(total[r][q], vcvtq_f32_s32(sum[r][q]), vmulq_n_f32(scale[q], rows[r].scales[b]));
        }
      }
    }
  }
  for (int r = 0; r < N; ++r) {
    for (int q = 0; q < 4; ++q) vst1q_f32(out + r * kTile + 4 * q, total[r][q]);
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
    float32x4_t scale[4];
    for (int w = 0; w < 4; ++w) {
      const uint16x4_t bits = vld1_u16(tile.group_scales(g) + half * 8 + 4 * (w / 2));
      const float32x4_t four = vreinterpretq_f32_u32(vshll_n_u16(bits, 16));
      const float32x2_t two = w % 2 ? vget_high_f32(four) : vget_low_f32(four);
      scale[w] = vcombine_f32(two, two);
    }
    for (int64_t end = b + tile.blocks; b < end; ++b) {
      const uint8_t* codes = tile.codes + b * kBlockBytes + half * 32;
      prefetch(codes);
      int32x4_t sum[2][4];
      for (int p = 0; p < 2; ++p) {
        const int32x4_t less = vcombine_s32(vdup_n_s32(-rows[2 * p].sums[b]), vdup_n_s32(-rows[2 * p + 1].sums[b]));
        for (int w = 0; w < 4; ++w) sum[p][w] = less;
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
      for (int p = 0; p < 2; ++p) {
        const float32x4_t x_scale = vcombine_f32(vdup_n_f32(rows[2 * p].scales[b]), vdup_n_f32(rows[2 * p + 1].scales[b]));
        for (int w = 0; w < 4; ++w) {
          total[p][w] = vfmaq_f32(total[p][w], vcvtq_f32_s32(sum[p][w]), vmulq_f32(scale[w], x_scale));
        }
      }
    }
  }
  for (int p = 0; p < 2; ++p) {
    for (int w = 0; w < 4; ++w) {
      float* to = out + 2 * p * kTile + half * 8 + 2 * w;
      vst1_f32(to, vget_low_f32(total[p][w])), vst1_f32(to + kTile, vget_high_f32(total[p][w]));
    }
  }
}

void i8mm(const View& tile, const CodedRow* rows, int64_t count, float* out) {
  in_turns<4, 2, 1>(rows, count, out, [&](auto n, const CodedRow* some, float* to) {
    if constexpr (n == 4) {
      four_rows_i8mm(tile, 0, some, to), four_rows_i8mm(tile, 1, some, to);
    } else {
      rows_dot<n>(tile, some, to);
    }
  });
}

void dotprod(const View& tile, const CodedRow* rows, int64_t count, float* out) {
  in_turns<4, 2, 1>(rows, count, out, [&](auto n, const CodedRow* some, float* to) { rows_dot<n>(tile, some, to); });
}

// The same of a tile of 8-bit codes.
template <int N>
P3M_DOT void rows8_dot(const View& tile, const CodedRow* rows, float* out) {
  float32x4_t total[N][4];
  for (int r = 0; r < N; ++r) {
    for (int q = 0; q < 4; ++q) total[r][q] = vdupq_n_f32(0);
  }
  for (int64_t b = 0; b < tile.width / kCodes; ++b) {
    int32x4_t sum[N][4];
    for (int r = 0; r < N; ++r) {
      for (int q = 0; q < 4; ++q) sum[r][q] = vdupq_n_s32(0);
    }
    for (int64_t k = b * kCodes; k < (b + 1) * kCodes; k += 4) {
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
      const float32x4_t x_scale = vdupq_n_f32(rows[r].scales[b]);
      for (int q = 0; q < 4; ++q) total[r][q] = vfmaq_f32(total[r][q], vcvtq_f32_s32(sum[r][q]), x_scale);
    }
  }
  for (int r = 0; r < N; ++r) {
    for (int q = 0; q < 4; ++q) {
      vst1q_f32(out + r * kTile + 4 * q, vmulq_f32(total[r][q], vld1q_f32(tile.row_scales() + 4 * q)));
    }
  }
}

void dotprod_8(const View& tile, const CodedRow* rows, int64_t count, float* out) {
  in_turns<4, 2, 1>(rows, count, out, [&](auto n, const CodedRow* some, float* to) { rows8_dot<n>(tile, some, to); });
}

template <int N>
void offsets_neon(const View& tile, const CodedRow* rows, float* out) {
  float32x4_t total[N][4];
  for (int r = 0; r < N; ++r) {
    for (int q = 0; q < 4; ++q) total[r][q] = vdupq_n_f32(0);
  }
  for (int64_t g = 0, b = 0; g < tile.groups; ++g) {
    const int8x16_t codes = vld1q_s8(tile.offsets + g * kTile);
    const int16x8_t low = vmovl_s8(vget_low_s8(codes)), high = vmovl_s8(vget_high_s8(codes));
    const float32x4_t wide[4] = {vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
        vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))};
    for (int64_t end = b + tile.blocks; b < end; ++b) {
      for (int r = 0; r < N; ++r) {
        for (int q = 0; q < 4; ++q) total[r][q] = vfmaq_n_f32(total[r][q], wide[q], rows[r].values[b]);
      }
    }
  }
  for (int r = 0; r < N; ++r) {
    for (int q = 0; q < 4; ++q) {
      float* to = out + r * kTile + 4 * q;
      vst1q_f32(to, vfmaq_f32(vld1q_f32(to), vld1q_f32(tile.steps + 4 * q), total[r][q]));
    }
  }
}

void add_offsets(const View& tile, const CodedRow* rows, int64_t count, float* out) {
  in_turns<4, 1>(rows, count, out, [&](auto n, const CodedRow* some, float* to) { offsets_neon<n>(tile, some, to); });
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
  return {has_i8mm() ? i8mm : dotprod, dotprod_8, add_offsets};
}

}  // namespace phi3mobile
#endif
