// Vectors of the machine's width: loads, sums, exp. Included by attention_loops.cpp, inside its namespace: compiled once per
// instruction set.

constexpr int W = P3M_LANES;
typedef float Floats __attribute__((vector_size(4 * W)));
typedef int32_t Ints __attribute__((vector_size(4 * W)));

#define P3M_INLINE static inline __attribute__((always_inline))

P3M_INLINE Floats load(const float* from) {
  Floats x;
  memcpy(&x, from, sizeof x);
  return x;
}

P3M_INLINE void store(float* to, Floats x) { memcpy(to, &x, sizeof x); }

P3M_INLINE Floats all(float x) { return x - Floats{}; }

P3M_INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// N vectors of a row, as floats.
template <int N>
P3M_INLINE void load_row(const float* from, Floats* to) {
  for (int n = 0; n < N; ++n) to[n] = load(from + n * W);
}

template <int N>
P3M_INLINE void load_row(const int8_t* from, Floats* to) {
#if defined(__aarch64__)
  static_assert(N == 4, "one 16-byte load");
  const int8x16_t bytes = vld1q_s8(from);
  const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
  to[0] = (Floats)vcvtq_f32_s32(vmovl_s16(vget_low_s16(low)));
  to[1] = (Floats)vcvtq_f32_s32(vmovl_s16(vget_high_s16(low)));
  to[2] = (Floats)vcvtq_f32_s32(vmovl_s16(vget_low_s16(high)));
  to[3] = (Floats)vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)));
#else
  for (int n = 0; n < N; ++n) {
    // The compilers' own conversion of a byte vector is several times slower.
#if defined(__AVX512F__)
    to[n] = (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(from + n * W))));
#elif defined(__AVX2__)
    to[n] = (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(from + n * W))));
#else
    const int8_t* f = from + n * W;
    to[n] = Floats{float(f[0]), float(f[1]), float(f[2]), float(f[3])};
#endif
  }
#endif
}

constexpr int kLoad = W == 4 ? 4 : 1;  // vectors per load_row: 16 bytes of int8 where vectors are short

template <int... I>
struct Lanes {};
template <int N, int... I>
struct MakeLanes : MakeLanes<N - 1, N - 1, I...> {};
template <int... I>
struct MakeLanes<0, I...> {
  typedef Lanes<I...> type;
};

// Lane i of the result: a's lanes i and i ^ STEP added where bit STEP of i is clear, b's where it is set.
template <int STEP, int... I>
P3M_INLINE Floats add_neighbours(Floats a, Floats b, Lanes<I...>) {
  return __builtin_shufflevector(a, b, (I & STEP ? W + I : I)...) +
         __builtin_shufflevector(a, b, (I & STEP ? W + (I ^ STEP) : I ^ STEP)...);
}

// The sums over the lanes of four vectors.
P3M_INLINE void store_totals(const Floats* x, float* to) {
  typedef typename MakeLanes<W>::type L;
  Floats sum = add_neighbours<2>(add_neighbours<1>(x[0], x[1], L()), add_neighbours<1>(x[2], x[3], L()), L());
  if (W > 8) sum = add_neighbours<8 % W>(sum, sum, L());
  if (W > 4) sum = add_neighbours<4 % W>(sum, sum, L());
  memcpy(to, &sum, 4 * sizeof(float));
}

P3M_INLINE float most_of(Floats x) {
  float most = x[0];
  for (int i = 1; i < W; ++i) most = x[i] > most ? x[i] : most;
  return most;
}

P3M_INLINE float total_of(Floats x) {
  float total = 0;
  for (int i = 0; i < W; ++i) total += x[i];
  return total;
}

// exp(x) for x <= 0 to about 1e-7 relative; exactly 0 below -87, so that -inf is a mask.
P3M_INLINE Floats exp_of(Floats x) {
  const Floats low = all(-87.0f);
  const Ints keep = x > low;
  x = larger(x, low);
  const Floats magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Floats n = (x * 1.44269504088896341f + magic) - magic;
  const Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;  // ln 2 in two parts
  Floats y = all(1.9875691500e-4f);
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  const Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
  return (Floats)((Ints)(y * (Floats)power) & keep);
}

// Asks for the `size` elements that lie `ahead` further: the next block of a sparse run, which no hardware foresees. 0:
// nothing.
template <class T>
P3M_INLINE void ask(const T* from, int64_t size, int64_t ahead) {
  if (ahead == 0) return;
  for (int64_t i = 0; i < size; i += 64 / (int64_t)sizeof(T)) __builtin_prefetch(from + ahead + i);
}
