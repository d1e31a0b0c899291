// The arithmetic of attention, in vectors of the machine's width. CMake compiles this file once per instruction set, each time
// with another P3M_ISA; nothing here may be shared between those objects, so: no STL, only static functions.
#include "attention.h"

#include <math.h>
#include <string.h>
#if defined(__aarch64__)
#include <arm_neon.h>
#elif defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define P3M_LANES 16
#define P3M_ROWS 4  // query rows whose accumulators fit the registers beside four keys
#elif defined(__AVX2__)
#define P3M_LANES 8
#define P3M_ROWS 2
#else
#define P3M_LANES 4
#define P3M_ROWS 2
#endif

// GCC fuses across statements, Clang only within one.
#if defined(__GNUC__) && !defined(__clang__)
#define P3M_UNFUSED __attribute__((optimize("fp-contract=off")))
#else
#define P3M_UNFUSED
#endif

namespace phi3mobile {
namespace P3M_ISA {
namespace {

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

// scores[r][key] = q[r] . keys[key] for R rows; rows of scores are kBlock apart.
template <int R, class T>
static void dots(const float* const* q, const T* keys, int64_t count, int64_t width, int64_t ahead, float* scores) {
  for (int64_t key = 0; key < count; key += 4) {
    const T* k[4];
    ask(keys + key * width, 4 * width, ahead);
    for (int i = 0; i < 4; ++i) k[i] = keys + (key + i < count ? key + i : count - 1) * width;
    Floats sums[R][4] = {};
    for (int64_t d = 0; d < width; d += kLoad * W) {
      Floats x[4][kLoad];
      for (int i = 0; i < 4; ++i) load_row<kLoad>(k[i] + d, x[i]);
      for (int n = 0; n < kLoad; ++n) {
        for (int r = 0; r < R; ++r) {
          const Floats y = load(q[r] + d + n * W);
          for (int i = 0; i < 4; ++i) sums[r][i] += x[i][n] * y;
        }
      }
    }
    for (int r = 0; r < R; ++r) store_totals(sums[r], scores + r * kBlock + key);
  }
}

// sums[r][d..] += weights[r][key] * values[key][d..] for R rows and N vectors from d on.
template <int R, int N, class T>
P3M_INLINE void weigh(const float* weights, const T* values, int64_t count, int64_t width, int64_t ahead, float* sums) {
  Floats y[R][N];
  for (int r = 0; r < R; ++r) load_row<N>(sums + r * width, y[r]);
  for (int64_t key = 0; key < count; ++key) {
    Floats x[N];
    ask(values + key * width, N * W, ahead);
    load_row<N>(values + key * width, x);
    for (int r = 0; r < R; ++r) {
      for (int n = 0; n < N; ++n) y[r][n] += x[n] * weights[r * kBlock + key];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) store(sums + r * width + n * W, y[r][n]);
  }
}

template <int R, class T>
static void weigh_rows(const float* weights, const T* values, int64_t count, int64_t width, int64_t ahead, float* sums) {
  int64_t d = 0;
  for (; d + 4 * W <= width; d += 4 * W) weigh<R, 4>(weights, values + d, count, width, ahead, sums + d);
#if P3M_LANES > 4
  for (; d + 2 * W <= width; d += 2 * W) weigh<R, 2>(weights, values + d, count, width, ahead, sums + d);
  for (; d < width; d += W) weigh<R, 1>(weights, values + d, count, width, ahead, sums + d);
#endif
}

template <class T>
static void all_dots(
    const float* const* q, int64_t rows, const T* keys, int64_t count, int64_t width, int64_t ahead, float* scores) {
  for (int64_t r = 0; r < rows; r += P3M_ROWS) {
    float* to = scores + r * kBlock;
    switch (rows - r) {
      case 1:
        dots<1>(q + r, keys, count, width, ahead, to);
        break;
#if P3M_ROWS > 2
      case 2:
        dots<2>(q + r, keys, count, width, ahead, to);
        break;
      case 3:
        dots<3>(q + r, keys, count, width, ahead, to);
        break;
#endif
      default:
        dots<P3M_ROWS>(q + r, keys, count, width, ahead, to);
    }
  }
}

template <class T>
static void all_weigh(
    const float* weights, int64_t rows, const T* values, int64_t count, int64_t width, int64_t ahead, float* sums) {
  for (int64_t r = 0; r < rows; r += P3M_ROWS) {
    const float* from = weights + r * kBlock;
    float* to = sums + r * width;
    switch (rows - r) {
      case 1:
        weigh_rows<1>(from, values, count, width, ahead, to);
        break;
#if P3M_ROWS > 2
      case 2:
        weigh_rows<2>(from, values, count, width, ahead, to);
        break;
      case 3:
        weigh_rows<3>(from, values, count, width, ahead, to);
        break;
#endif
      default:
        weigh_rows<P3M_ROWS>(from, values, count, width, ahead, to);
    }
  }
}

// Online softmax of one row over one block: scores[first, end) become weights, the others 0. sums are rescaled to the new peak.
static void soften(float* scores, int64_t first, int64_t end, float scale, const float* k_scale, const float* v_scale,
    int64_t width, float* sums, float* peak, float* total) {
  if (first >= end) {
    memset(scores, 0, kBlock * sizeof(float));
    return;
  }
  for (int64_t j = 0; j < kBlock; j += W) store(scores + j, load(scores + j) * load(k_scale + j) * scale);
  for (int64_t j = 0; j < first; ++j) scores[j] = -INFINITY;
  for (int64_t j = end; j < kBlock; ++j) scores[j] = -INFINITY;
  Floats most = load(scores);
  for (int64_t j = W; j < kBlock; j += W) most = larger(load(scores + j), most);
  const float before = *peak, now = most_of(most);
  if (now > before) {
    *peak = now;
    const float shrink = before == -INFINITY ? 0.0f : expf(before - now);
    *total *= shrink;
    for (int64_t d = 0; d < width; d += W) store(sums + d, load(sums + d) * shrink);
  }
  Floats added = {};
  for (int64_t j = 0; j < kBlock; j += W) {
    const Floats weight = exp_of(load(scores + j) - *peak);
    added += weight;
    store(scores + j, weight * load(v_scale + j));
  }
  *total += total_of(added);
}

// int8 rows are made floats once for all query rows where there are many.
static const float* widen(const int8_t* rows, int64_t count, int64_t width, float* to) {
  for (int64_t i = 0; i < count * width; i += kLoad * W) {
    Floats x[kLoad];
    load_row<kLoad>(rows + i, x);
    for (int n = 0; n < kLoad; ++n) store(to + i + n * W, x[n]);
  }
  return to;
}

static const float* widen(const float* rows, int64_t, int64_t, float*) { return rows; }

// One head, rotated by its token's angles in NeoX halves: (x[i], x[i + half]) for i < half; the rest passes through.
// Products are rounded before they are added, as in the eager reference: a fused multiply-add could turn one int8 step.
P3M_UNFUSED static void rotate(const float* x, const float* cos, const float* sin, int64_t half, int64_t width, float* to) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i] * cos[i], b = x[i + half] * sin[i];
    const float c = x[i + half] * cos[i], d = x[i] * sin[i];
    to[i] = a - b;
    to[i + half] = c + d;
  }
  memcpy(to + 2 * half, x + 2 * half, (width - 2 * half) * sizeof(float));
}

static void quantize(const float* row, int64_t width, int8_t* out, float* scale) {
  Floats most = {};
  for (int64_t d = 0; d < width; d += W) {
    const Floats x = load(row + d);
    most = larger(larger(x, -x), most);
  }
  const float peak = most_of(most);
  const float inverse = peak > 0 ? 127.0f / peak : 0.0f;
  for (int64_t d = 0; d < width; ++d) {
    const float x = rintf(row[d] * inverse);
    out[d] = (int8_t)(x > 127 ? 127 : x < -127 ? -127 : x);
  }
  *scale = peak / 127.0f;
}

#include "nibbles.h"

// A key or value turned, in both forms: as int8 in the ring's row `at`, of 4 bits in row `position` of its KV head.
static void write_both(const Attention& a, float* row, int64_t head, int64_t at, int64_t position, void* ring, float* scale,
    uint8_t* coarse, uint16_t* coarse_scale) {
  turn(row, a.width);
  quantize(row, a.width, (int8_t*)ring + at * a.width, scale + at);
  quantize(row, a.width, coarse + (head * a.coarse.capacity + position) * (a.width / 2),
      coarse_scale + head * (a.width / kGroup) * a.coarse.capacity + position, a.coarse.capacity);
}

static void write(const Attention& a, int64_t first, int64_t end) {
  float key[kMaxWidth], turned[kMaxWidth];
  for (int64_t t = first; t < end; ++t) {
    const float* row = a.qkv + (t * (a.heads + 2 * a.kv_heads) + a.heads) * a.width;
    for (int64_t head = 0; head < a.kv_heads; ++head) {
      int64_t at = a.position + t;
      if (a.ring) at = row_of(a, head, at / a.block) + at % a.block;
      at = (a.coarse.keys ? at % kRing : at) + head * a.capacity;
      const float* value = row + (a.kv_heads + head) * a.width;
      rotate(row + head * a.width, a.cos + t * a.half, a.sin + t * a.half, a.half, a.width, key);
      if (a.coarse.keys) {
        memcpy(turned, value, a.width * sizeof(float));
        write_both(a, key, head, at, a.position + t, a.k_cache, a.k_scale, a.coarse.keys, a.coarse.k_scale);
        write_both(a, turned, head, at, a.position + t, a.v_cache, a.v_scale, a.coarse.values, a.coarse.v_scale);
      } else if (a.k_scale) {
        quantize(key, a.width, (int8_t*)a.k_cache + at * a.width, a.k_scale + at);
        quantize(value, a.width, (int8_t*)a.v_cache + at * a.width, a.v_scale + at);
      } else {
        memcpy((float*)a.k_cache + at * a.width, key, a.width * sizeof(float));
        memcpy((float*)a.v_cache + at * a.width, value, a.width * sizeof(float));
      }
    }
  }
}

// The token and the head within the group of a part's row.
P3M_INLINE void place_of(const Attention& a, const Part& part, int64_t r, int64_t* token, int64_t* head) {
  const int64_t group = a.heads / a.kv_heads;
  *token = a.block ? part.first_token + r % part.tokens : (part.first_row + r) / group;
  *head = a.block ? part.first_head + r / part.tokens : (part.first_row + r) % group;
}

// A part at work: its rotated queries, and room for one block of keys.
struct Tile {
  const float* q[kSparseRows];
  const int8_t* codes[kSparseRows];  // of the queries, where keys have 4 bits; q are their values
  float q_scale[kSparseRows];
  float *scores, *wide, *k_scale, *v_scale;
};

static void turn_query(float* q, int64_t width, int8_t* codes, float* scale) {
  turn(q, width);
  quantize(q, width, codes, scale);
  for (int64_t d = 0; d < width; ++d) q[d] = codes[d] * *scale;
}

static void prepare(const Attention& a, const Part& part, float* scratch, Tile* tile) {
  const int64_t width = a.width, group = a.heads / a.kv_heads;
  tile->scores = scratch;
  float* turned = tile->scores + part.rows * kBlock;
  int8_t* codes = (int8_t*)(turned + part.rows * width);
  tile->wide = turned + part.rows * (width + width / 4);
  tile->k_scale = tile->wide + kBlock * width;
  tile->v_scale = tile->k_scale + kBlock;
  for (int64_t r = 0; r < part.rows; ++r) {
    int64_t token, head;
    place_of(a, part, r, &token, &head);
    const float* from = a.qkv + (token * (a.heads + 2 * a.kv_heads) + part.kv_head * group + head) * width;
    tile->q[r] = turned + r * width;
    rotate(from, a.cos + token * a.half, a.sin + token * a.half, a.half, width, turned + r * width);
    tile->codes[r] = codes + r * width;
    if (a.coarse.keys) turn_query(turned + r * width, width, codes + r * width, tile->q_scale + r);
    part.peaks[r] = -INFINITY;
    part.totals[r] = 0;
  }
  memset(part.sums, 0, part.rows * width * sizeof(float));
  for (int64_t j = 0; j < kBlock; ++j) tile->k_scale[j] = tile->v_scale[j] = 1;
}

// Rows [first, end) of a part against `count` keys in the cache from row `at` on; sees(row, &from, &to) gives the keys
// of these that a row sees. The next keys lie `ahead` rows further; 0: wherever.
template <class T, class Sees>
P3M_INLINE void attend_keys(const Attention& a, const Part& part, Tile& tile, int64_t first, int64_t end, int64_t at,
    int64_t count, int64_t ahead, const Sees& sees) {
  const int64_t width = a.width, rows = end - first;
  at += part.kv_head * a.capacity;
  const T* keys = (const T*)a.k_cache + at * width;
  const T* values = (const T*)a.v_cache + at * width;
  float *scores = tile.scores + first * kBlock, *sums = part.sums + first * width;
  if (a.k_scale) {
    memcpy(tile.k_scale, a.k_scale + at, count * sizeof(float));
    memcpy(tile.v_scale, a.v_scale + at, count * sizeof(float));
  }
  if (rows > P3M_ROWS) {
    all_dots(tile.q + first, rows, widen(keys, count, width, tile.wide), count, width, 0, scores);
  } else {
    all_dots(tile.q + first, rows, keys, count, width, ahead * width, scores);
  }
  for (int64_t r = first; r < end; ++r) {
    int64_t from = 0, to = count;
    sees(r, &from, &to);
    soften(tile.scores + r * kBlock, from, to, a.scale, tile.k_scale, tile.v_scale, width, part.sums + r * width,
        part.peaks + r, part.totals + r);
  }
  if (rows > P3M_ROWS) {
    all_weigh(scores, rows, widen(values, count, width, tile.wide), count, width, 0, sums);
  } else {
    all_weigh(scores, rows, values, count, width, ahead * width, sums);
  }
}

template <class T>
static void attend_dense(const Attention& a, const Part& part, Tile& tile) {
  const int64_t group = a.heads / a.kv_heads;
  for (int64_t key = part.first_key; key < part.end_key; key += kBlock) {
    const int64_t count = part.end_key - key < kBlock ? part.end_key - key : kBlock;
    attend_keys<T>(a, part, tile, 0, part.rows, key, count, 0, [&](int64_t r, int64_t* from, int64_t* to) {
      const int64_t at_position = a.position + (part.first_row + r) / group;
      const int64_t first = a.window > 0 ? at_position - a.window + 1 - key : 0, end = at_position + 1 - key;
      *from = first < 0 ? 0 : first;
      *to = end > count ? count : end;
    });
  }
}

// Rows of a part against `count` keys of 4 bits from position `at` on; sees: as attend_keys'.
template <class Sees>
P3M_INLINE void attend_coarse_keys(
    const Attention& a, const Part& part, Tile& tile, int64_t at, int64_t count, const Sees& sees) {
  const int64_t width = a.width, capacity = a.coarse.capacity, first = part.kv_head * capacity;
  const CoarseRows keys(
      a.coarse.keys + first * (width / 2), a.coarse.k_scale + first * (width / kGroup), at, count, width, capacity);
  const CoarseRows values(
      a.coarse.values + first * (width / 2), a.coarse.v_scale + first * (width / kGroup), at, count, width, capacity);
  for (int64_t j = 0; j < kBlock; ++j) tile.k_scale[j] = tile.v_scale[j] = 1;
  if (part.rows > P3M_ROWS) {
    all_dots(tile.q, part.rows, widen(keys, count, width, tile.wide), count, width, 0, tile.scores);
  } else {
    all_dots(tile.codes, tile.q_scale, part.rows, keys, count, width, tile.scores);
  }
  for (int64_t r = 0; r < part.rows; ++r) {
    int64_t from = 0, to = count;
    sees(r, &from, &to);
    soften(tile.scores + r * kBlock, from, to, a.scale, tile.k_scale, tile.v_scale, width, part.sums + r * width,
        part.peaks + r, part.totals + r);
  }
  if (part.rows > P3M_ROWS) {
    all_weigh(tile.scores, part.rows, widen(values, count, width, tile.wide), count, width, 0, part.sums);
  } else {
    all_weigh(tile.scores, part.rows, values, count, width, part.sums);
  }
}

// Each query reads the last kRecent keys as int8, as far as they are there, those before them of 4 bits.
static void attend_coarse(const Attention& a, const Part& part, Tile& tile) {
  const int64_t group = a.heads / a.kv_heads;
  const auto position_of = [&](int64_t r) { return a.position + (part.first_row + r) / group; };
  const auto first_seen = [&](int64_t r) { return a.window > 0 ? position_of(r) - a.window + 1 : 0; };
  const auto first_fine = [&](int64_t r) {
    const int64_t recent = position_of(r) - kRecent + 1;
    return recent > a.coarse.ring_from ? recent : a.coarse.ring_from;
  };
  const int64_t coarse_end = first_fine(part.rows - 1) < part.end_key ? first_fine(part.rows - 1) : part.end_key;
  for (int64_t key = part.first_key; key < coarse_end; key += kBlock) {
    const int64_t count = coarse_end - key < kBlock ? coarse_end - key : kBlock;
    attend_coarse_keys(a, part, tile, key, count, [&](int64_t r, int64_t* from, int64_t* to) {
      const int64_t first = first_seen(r) - key, end = first_fine(r) - key;
      *from = first < 0 ? 0 : first;
      *to = end > count ? count : end;
    });
  }
  const int64_t fine_first = first_fine(0) > part.first_key ? first_fine(0) : part.first_key;
  for (int64_t key = fine_first, count; key < part.end_key; key += count) {
    const int64_t whole = kBlock - key % kBlock;  // rows of the ring that lie together
    count = part.end_key - key < whole ? part.end_key - key : whole;
    attend_keys<int8_t>(a, part, tile, 0, part.rows, key % kRing, count, 0, [&](int64_t r, int64_t* from, int64_t* to) {
      const int64_t seen = first_seen(r) - key, fine = first_fine(r) - key, end = position_of(r) + 1 - key;
      const int64_t first = seen > fine ? seen : fine;
      *from = first < 0 ? 0 : first;
      *to = end > count ? count : end;
    });
  }
}

// One block for some rows, causally where it is the queries' own; `next` is the block after it.
template <class T>
static void attend_block(
    const Attention& a, const Part& part, Tile& tile, int64_t first, int64_t end, int64_t key_block, int64_t next, bool own) {
  const int64_t position = a.position + part.first_token, at = row_of(a, part.kv_head, key_block), base = key_block * a.block;
  const int64_t ahead = row_of(a, part.kv_head, next) - at;
  const int64_t size = own ? position + part.tokens - base : a.block;
  for (int64_t key = 0; key < size; key += kBlock) {
    const int64_t count = size - key < kBlock ? size - key : kBlock;
    attend_keys<T>(a, part, tile, first, end, at + key, count, ahead, [&](int64_t r, int64_t*, int64_t* to) {
      const int64_t visible = position + r % part.tokens + 1 - base - key;
      if (own && visible < count) *to = visible;
    });
  }
}

template <class T>
static void attend_sparse(const Attention& a, const Part& part, Tile& tile) {
  const int64_t query_block = (a.position + part.first_token) / a.block, heads = part.rows / part.tokens;
  const int64_t head = part.kv_head * (a.heads / a.kv_heads) + part.first_head;
  const Seen seen = seen_from(a, query_block, head, heads);
  int64_t before = 0;  // numbers of the runs before
  for (int64_t run = 0; run < seen.runs; ++run) {
    const int64_t count = Seen::in_run(a, seen.remote_end, head + run), rows = seen.heads_per_run * part.tokens;
    const int64_t first = part.first_key > before ? part.first_key - before : 0;
    const int64_t end = part.end_key - before < count ? part.end_key - before : count;
    for (int64_t i = first; i < end; ++i) {
      const int64_t key_block = residue_of(a, head + run) + i * a.stride;
      int64_t next = key_block + a.stride;
      if (i + 1 == end) next = run + 1 < seen.runs ? residue_of(a, head + run + 1) : seen.remote_end;
      attend_block<T>(a, part, tile, run * rows, (run + 1) * rows, key_block, next <= query_block ? next : key_block, false);
    }
    before += count;
  }
  const int64_t first = part.first_key > before ? part.first_key - before : 0;
  for (int64_t i = first; before + i < part.end_key; ++i) {
    const int64_t key_block = seen.remote_end + i, next = key_block < query_block ? key_block + 1 : key_block;
    attend_block<T>(a, part, tile, 0, part.rows, key_block, next, key_block == query_block);
  }
}

static void attend(const Attention& a, const Part& part, float* scratch) {
  Tile tile;
  prepare(a, part, scratch, &tile);
  if (a.coarse.keys) {
    attend_coarse(a, part, tile);
  } else if (a.block) {
    if (a.k_scale) {
      attend_sparse<int8_t>(a, part, tile);
    } else {
      attend_sparse<float>(a, part, tile);
    }
  } else if (a.k_scale) {
    attend_dense<int8_t>(a, part, tile);
  } else {
    attend_dense<float>(a, part, tile);
  }
}

static void finish(const Attention& a, const Part* parts, int64_t count) {
  const int64_t width = a.width, group = a.heads / a.kv_heads;
  for (int64_t r = 0; r < parts[0].rows; ++r) {
    float peak = -INFINITY, total = 0;
    for (int64_t i = 0; i < count; ++i) peak = parts[i].peaks[r] > peak ? parts[i].peaks[r] : peak;
    for (int64_t i = 0; i < count; ++i) total += parts[i].totals[r] * expf(parts[i].peaks[r] - peak);
    int64_t token, head;
    place_of(a, parts[0], r, &token, &head);
    float* out = a.out + (token * a.heads + parts[0].kv_head * group + head) * width;
    memset(out, 0, width * sizeof(float));
    for (int64_t i = 0; i < count; ++i) {
      const float share = expf(parts[i].peaks[r] - peak) / total;
      for (int64_t d = 0; d < width; d += W) store(out + d, load(out + d) + load(parts[i].sums + r * width + d) * share);
    }
    if (a.coarse.keys) turn(out, width);
  }
}

}  // namespace

extern const Loops loops;
const Loops loops = {write, attend, finish};

}  // namespace P3M_ISA
}  // namespace phi3mobile
