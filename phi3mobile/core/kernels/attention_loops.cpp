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

// In this order, each building on the ones before.
#include "attention_vectors.h"
#include "attention_rows.h"
#include "nibbles.h"
#include "attention_write.h"

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
