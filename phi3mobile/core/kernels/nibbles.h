// Rows of 4 bits in groups of 32: one of 16 levels a value, a bfloat16 scale a group; rows are turned by a Hadamard matrix
// before. Included by attention_loops.cpp, inside its namespace: compiled once per instruction set. The same bits on all of
// them: levels and products are integers, and what is rounded is rounded by the same float32 operations.
// Byte i of a group's 16 holds value i in its low half and value i + 16 in its high half.

// Of least squared error for values of a normal distribution, a group's largest being -127 (as llama.cpp's IQ4_NL).
constexpr int8_t kLevels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
#if defined(__AVX2__) && !defined(__AVX512F__)
// The two upper bytes of each level as a float32.
constexpr uint8_t kUpper[16] = {0xc2, 0xc2, 0xc2, 0xc2, 0xc2, 0xc2, 0xc1, 0xc1, 0x3f, 0x41, 0x41, 0x42, 0x42, 0x42, 0x42, 0x42};
constexpr uint8_t kLower[16] = {0xfe, 0xd0, 0xa6, 0x82, 0x44, 0x0c, 0xb0, 0x20, 0x80, 0x50, 0xc8, 0x18, 0x54, 0x8a, 0xb2, 0xe2};
#endif

P3M_INLINE float scale_of(uint16_t bits) {
  const uint32_t wide = (uint32_t)bits << 16;
  float x;
  memcpy(&x, &wide, sizeof x);
  return x;
}

// Every group by the normalized Hadamard matrix of 32, which is its own inverse.
static void turn(float* row, int64_t width) {
  for (float* x = row; x < row + width; x += kGroup) {
    for (int64_t step = 1; step < kGroup; step *= 2) {
      float y[kGroup];
      for (int64_t i = 0; i < kGroup; i += 2 * step) {
        for (int64_t j = i; j < i + step; ++j) y[j] = x[j] + x[j + step], y[j + step] = x[j] - x[j + step];
      }
      memcpy(x, y, sizeof y);
    }
    for (int64_t i = 0; i < kGroup; ++i) x[i] *= 0.17677669529663687f;  // 32^-1/2
  }
}

// The nearest level, the lower one of two as near; the groups' scales lie `step` apart.
static void quantize(const float* row, int64_t width, uint8_t* out, uint16_t* scales, int64_t step) {
  for (int64_t d = 0; d < width; d += kGroup, out += kGroup / 2, scales += step) {
    float peak = 0;
    for (int64_t i = 0; i < kGroup; ++i) peak = fabsf(row[d + i]) > fabsf(peak) ? row[d + i] : peak;
    const float exact = peak / -127.0f;
    uint32_t bits;
    memcpy(&bits, &exact, sizeof bits);
    *scales = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);  // half to even
    const float scale = scale_of(*scales), inverse = fabsf(scale) > 1e-30f ? 1.0f / scale : 0.0f;
    if (inverse == 0) *scales = 0;
    int32_t codes[kGroup] = {};
    for (int k = 0; k < 15; ++k) {
      const float between = 0.5f * (kLevels[k] + kLevels[k + 1]);
      for (int64_t i = 0; i < kGroup; ++i) codes[i] += row[d + i] * inverse > between;
    }
    for (int64_t i = 0; i < kGroup / 2; ++i) out[i] = (uint8_t)(codes[i] | codes[i + kGroup / 2] << 4);
  }
}

// Levels: the 32 of a group. Sums: partial sums of one key, in as many lanes as the instruction set has.
#if defined(__AVX2__)
typedef __m256i Levels;
typedef __m256 Sums;

P3M_INLINE __m256i load_codes(const uint8_t* from) {
  const __m256i bytes = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)from));
  return _mm256_and_si256(_mm256_srlv_epi64(bytes, _mm256_setr_epi64x(0, 0, 4, 4)), _mm256_set1_epi8(15));
}

P3M_INLINE Levels load_levels(const uint8_t* from) {
  const __m256i levels = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)kLevels));
  return _mm256_shuffle_epi8(levels, load_codes(from));
}

// sums += scale * levels . q
P3M_INLINE void add_products(Levels x, const int8_t* q, float scale, Sums* sums) {
  const __m256i y = _mm256_loadu_si256((const __m256i*)q);
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(y), _mm256_sign_epi8(x, y));  // at most 2 * 127 * 127
  const __m256i fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  *sums = _mm256_fmadd_ps(_mm256_cvtepi32_ps(fours), _mm256_set1_ps(scale), *sums);
}

// Of four keys.
P3M_INLINE void store_sums(const Sums* x, float factor, float* to) {
  const __m256 sum = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
  _mm_storeu_ps(to, _mm_mul_ps(_mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1)), _mm_set1_ps(factor)));
}

// The levels as floats, in an order of its own: that of load_group and store_group.
#if defined(__AVX512F__)
P3M_INLINE void spread(const uint8_t* from, Floats* to) {
  const __m512 levels = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)kLevels)));
  const __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from));
  to[0] = (Floats)_mm512_permutexvar_ps(codes, levels);
  to[1] = (Floats)_mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4), levels);
}

P3M_INLINE void load_group(const float* from, Floats* to) { load_row<kGroup / W>(from, to); }
P3M_INLINE void store_group(float* to, const Floats* x) {
  for (int n = 0; n < kGroup / W; ++n) store(to + n * W, x[n]);
}
#else
// A level is exact in the upper half of a float32, whose two bytes are looked up.
P3M_INLINE void spread(const uint8_t* from, Floats* to) {
  const __m256i codes = load_codes(from), zero = _mm256_setzero_si256();
  const __m256i upper = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)kUpper)), codes);
  const __m256i lower = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)kLower)), codes);
  const __m256i first = _mm256_unpacklo_epi8(lower, upper), other = _mm256_unpackhi_epi8(lower, upper);
  to[0] = (Floats)_mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, first));  // values 0 to 3 and 16 to 19, and so on
  to[1] = (Floats)_mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, first));
  to[2] = (Floats)_mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, other));
  to[3] = (Floats)_mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, other));
}

P3M_INLINE void load_group(const float* from, Floats* to) {
  for (int n = 0; n < 4; ++n) to[n] = (Floats)_mm256_loadu2_m128(from + kGroup / 2 + 4 * n, from + 4 * n);
}
P3M_INLINE void store_group(float* to, const Floats* x) {
  for (int n = 0; n < 4; ++n) _mm256_storeu2_m128(to + kGroup / 2 + 4 * n, to + 4 * n, (__m256)x[n]);
}
#endif
#elif defined(__aarch64__)
struct Levels {
  int8x16_t low, high;
};
typedef float32x4_t Sums;

P3M_INLINE Levels load_levels(const uint8_t* from) {
  const int8x16_t levels = vld1q_s8(kLevels);
  const uint8x16_t bytes = vld1q_u8(from);
  return {vqtbl1q_s8(levels, vandq_u8(bytes, vdupq_n_u8(15))), vqtbl1q_s8(levels, vshrq_n_u8(bytes, 4))};
}

P3M_INLINE void add_products(Levels x, const int8_t* q, float scale, Sums* sums) {
  const int8x16_t low = vld1q_s8(q), high = vld1q_s8(q + 16);
  const int16x8_t first = vmlal_s8(vmull_s8(vget_low_s8(x.low), vget_low_s8(low)), vget_low_s8(x.high), vget_low_s8(high));
  const int16x8_t other = vmlal_s8(vmull_s8(vget_high_s8(x.low), vget_high_s8(low)), vget_high_s8(x.high), vget_high_s8(high));
  *sums = vfmaq_n_f32(*sums, vcvtq_f32_s32(vpadalq_s16(vpaddlq_s16(first), other)), scale);
}

P3M_INLINE void store_sums(const Sums* x, float factor, float* to) {
  vst1q_f32(to, vmulq_n_f32(vpaddq_f32(vpaddq_f32(x[0], x[1]), vpaddq_f32(x[2], x[3])), factor));
}

P3M_INLINE void spread(const uint8_t* from, Floats* to) {
  const Levels x = load_levels(from);
  int8_t bytes[kGroup];
  vst1q_s8(bytes, x.low), vst1q_s8(bytes + 16, x.high);
  for (int n = 0; n < kGroup / W; n += kLoad) load_row<kLoad>(bytes + n * W, to + n);
}
#else
struct Levels {
  int8_t at[kGroup];
};
typedef float Sums;

P3M_INLINE Levels load_levels(const uint8_t* from) {
  Levels x;
  for (int i = 0; i < kGroup / 2; ++i) x.at[i] = kLevels[from[i] & 15], x.at[i + kGroup / 2] = kLevels[from[i] >> 4];
  return x;
}

P3M_INLINE void add_products(const Levels& x, const int8_t* q, float scale, Sums* sums) {
  int32_t total = 0;
  for (int i = 0; i < kGroup; ++i) total += x.at[i] * q[i];
  *sums += (float)total * scale;
}

P3M_INLINE void store_sums(const Sums* x, float factor, float* to) {
  for (int i = 0; i < 4; ++i) to[i] = x[i] * factor;
}

P3M_INLINE void spread(const uint8_t* from, Floats* to) {
  const Levels x = load_levels(from);
  for (int n = 0; n < kGroup / W; n += kLoad) load_row<kLoad>(x.at + n * W, to + n);
}
#endif
#if !defined(__AVX2__)
P3M_INLINE void load_group(const float* from, Floats* to) { load_row<kGroup / W>(from, to); }
P3M_INLINE void store_group(float* to, const Floats* x) {
  for (int n = 0; n < kGroup / W; ++n) store(to + n * W, x[n]);
}
#endif

// Rows of 4 bits of one block of keys, and their scales as float32 [groups, kBlock].
struct CoarseRows {
  const uint8_t* codes;
  float scales[kMaxWidth / kGroup * kBlock];

  // From row `at` of all that a KV head has, scales [groups, capacity].
  CoarseRows(const uint8_t* rows, const uint16_t* from, int64_t at, int64_t count, int64_t width, int64_t capacity)
      : codes(rows + at * (width / 2)) {
    for (int64_t g = 0; g < width / kGroup; ++g) {
      for (int64_t j = 0; j < count; ++j) scales[g * kBlock + j] = scale_of(from[g * capacity + at + j]);
      for (int64_t j = count; j < kBlock; ++j) scales[g * kBlock + j] = 0;
    }
  }
};

// scores[r][key] = q[r] . keys[key] for R rows of int8 codes with a scale each; rows of scores are kBlock apart.
template <int R>
static void dots(
    const int8_t* const* q, const float* q_scale, const CoarseRows& keys, int64_t count, int64_t width, float* scores) {
  const int64_t groups = width / kGroup;
  for (int64_t key = 0; key < count; key += 4) {
    Sums sums[R][4] = {};
    for (int i = 0; i < 4; ++i) {
      const int64_t own = key + i < count ? key + i : count - 1;
      for (int64_t g = 0; g < groups; ++g) {
        const Levels x = load_levels(keys.codes + (own * groups + g) * (kGroup / 2));
        for (int r = 0; r < R; ++r) add_products(x, q[r] + g * kGroup, keys.scales[g * kBlock + own], &sums[r][i]);
      }
    }
    for (int r = 0; r < R; ++r) store_sums(sums[r], q_scale[r], scores + r * kBlock + key);
  }
}

// sums[r] += weights[r][key] * values[key] for R rows.
template <int R>
static void weigh_rows(const float* weights, const CoarseRows& values, int64_t count, int64_t width, float* sums) {
  const int64_t groups = width / kGroup;
  for (int64_t g = 0; g < groups; ++g) {
    float shares[R][kBlock];
    Floats y[R][kGroup / W], x[kGroup / W];
    for (int r = 0; r < R; ++r) {
      for (int64_t j = 0; j < kBlock; j += W)
        store(shares[r] + j, load(weights + r * kBlock + j) * load(values.scales + g * kBlock + j));
      load_group(sums + r * width + g * kGroup, y[r]);
    }
    for (int64_t key = 0; key < count; ++key) {
      spread(values.codes + (key * groups + g) * (kGroup / 2), x);
      for (int r = 0; r < R; ++r) {
        for (int n = 0; n < kGroup / W; ++n) y[r][n] += x[n] * shares[r][key];
      }
    }
    for (int r = 0; r < R; ++r) store_group(sums + r * width + g * kGroup, y[r]);
  }
}

// For at most P3M_ROWS rows: of more, widened floats are faster.
static void all_dots(const int8_t* const* q, const float* q_scale, int64_t rows, const CoarseRows& keys, int64_t count,
    int64_t width, float* scores) {
  switch (rows) {
    case 1:
      return dots<1>(q, q_scale, keys, count, width, scores);
#if P3M_ROWS > 2
    case 2:
      return dots<2>(q, q_scale, keys, count, width, scores);
    case 3:
      return dots<3>(q, q_scale, keys, count, width, scores);
#endif
    default:
      return dots<P3M_ROWS>(q, q_scale, keys, count, width, scores);
  }
}

static void all_weigh(const float* weights, int64_t rows, const CoarseRows& values, int64_t count, int64_t width, float* sums) {
  switch (rows) {
    case 1:
      return weigh_rows<1>(weights, values, count, width, sums);
#if P3M_ROWS > 2
    case 2:
      return weigh_rows<2>(weights, values, count, width, sums);
    case 3:
      return weigh_rows<3>(weights, values, count, width, sums);
#endif
    default:
      return weigh_rows<P3M_ROWS>(weights, values, count, width, sums);
  }
}

static const float* widen(const CoarseRows& rows, int64_t count, int64_t width, float* to) {
  const int64_t groups = width / kGroup;
  for (int64_t i = 0; i < count * groups; ++i) {
    Floats x[kGroup / W];
    spread(rows.codes + i * (kGroup / 2), x);
    for (int n = 0; n < kGroup / W; ++n) x[n] *= rows.scales[i % groups * kBlock + i / groups];
    store_group(to + i * kGroup, x);
  }
  return to;
}
