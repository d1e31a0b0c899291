// Causal attention over a KV cache: the plain interface between the operators (attention_op.cpp, attention_work.cpp) and its
// loops (attention_loops.cpp, compiled once per instruction set). No ExecuTorch and no STL here.
#pragma once

#include <stdint.h>

namespace phi3mobile {

constexpr int64_t kBlock = 64;       // keys handled at once: their scores stay in L1
constexpr int64_t kTileRows = 32;    // query rows handled at once; a row is one query head of one token
constexpr int64_t kSparseRows = 64;  // and in the sparse form, where a head alone sees a remote block
constexpr int64_t kMaxWidth = 256;   // widest head
constexpr int64_t kGroup = 32;       // values of a 4-bit row with one scale
constexpr int64_t kRecent = 128;     // keys that a query reads from int8 rows, itself included, where the others are of 4 bits
constexpr int64_t kRing = 256;       // int8 rows kept beside rows of 4 bits: kRecent for each of so many tokens at once

// Rows of 4 bits: of every position, beside the int8 rows of the last ones.
struct Coarse {
  uint8_t *keys, *values;       // [Hkv, S, D / 2]; null: there are none
  uint16_t *k_scale, *v_scale;  // bfloat16 [Hkv, D / kGroup, S]
  int64_t capacity;             // S
  int64_t ring_from;            // first position whose int8 row is still there
  int64_t* mark;                // kept between calls: ring_from, and the end of what was written last
};

// One call of the operator, or a piece of its tokens.
struct Attention {
  const float* qkv;  // [T, (H + 2 Hkv) * D]: all Q, all K, all V, not yet rotated
  const float* cos;  // [T, R]
  const float* sin;
  float* out;     // [T, H, D]
  void* k_cache;  // [Hkv, S, D], float32 or int8
  void* v_cache;
  float* k_scale;  // [Hkv, S]; null for a float32 cache
  float* v_scale;
  int64_t count, heads, kv_heads, width, capacity, half;  // T, H, Hkv, D, S, R
  int64_t position;                                       // of the first token
  int64_t window;                                         // keys a query sees, itself included; 0: all before it
  float scale;
  // Sparse form, where block > 0: see phi3mobile/models/blocksparse.py.
  int64_t block, local_blocks, stride, head_step;
  int64_t ring, periods, kept;  // evicting caches, where ring > 0
  // 4-bit form, dense only, where coarse.keys: k_cache and v_cache are a ring of S = kRing int8 rows, position p in row p %
  // kRing.
  Coarse coarse;
};

// A piece of the work: some rows of one KV head against some keys, and its unnormalised result.
// Dense: rows are numbered token-major, row = token * group + head within the group; keys are positions.
// Sparse: row r of the part is its token r % tokens and its head r / tokens, all tokens in one query block; keys are the
// blocks that these heads see, numbered as in `Seen`.
struct Part {
  int64_t kv_head, first_row, rows, first_key, end_key;
  int64_t first_token, tokens, first_head;  // sparse
  float* sums;                              // [rows, D]: sum of exp(score - peak) * value
  float* peaks;                             // [rows]: highest score
  float* totals;                            // [rows]: sum of exp(score - peak)
};

// The residue block % stride of the remote blocks that a query head sees.
static inline int64_t residue_of(const Attention& a, int64_t head) {
  return a.stride - 1 - head * (a.head_step % a.stride) % a.stride;
}

// The blocks that some heads of one KV head see from one query block: run after run of remote blocks, `stride` apart, one run
// for each head (one for all where heads are alike), then the local blocks. Computed, not stored.
struct Seen {
  int64_t remote_end;  // blocks before it are remote, from there on local
  int64_t heads_per_run, runs, count;

  static int64_t in_run(const Attention& a, int64_t remote_end, int64_t head) {
    const int64_t first = residue_of(a, head);
    return first < remote_end ? (remote_end - 1 - first) / a.stride + 1 : 0;
  }
};

static inline Seen seen_from(const Attention& a, int64_t query_block, int64_t first_head, int64_t heads) {
  Seen seen{};
  seen.remote_end = query_block < a.local_blocks ? 0 : query_block - a.local_blocks + 1;
  seen.heads_per_run = a.head_step % a.stride == 0 ? heads : 1;
  seen.runs = heads / seen.heads_per_run;
  for (int64_t run = 0; run < seen.runs; ++run) seen.count += Seen::in_run(a, seen.remote_end, first_head + run);
  seen.count += query_block + 1 - seen.remote_end;
  return seen;
}

// First cache row of a block of keys. Evicting: blocks that a query head of this KV head sees from afar come first, `kept` for
// each `stride`; the others pass through the ring. The first `kept` heads of a group have all its residues.
static inline int64_t row_of(const Attention& a, int64_t kv_head, int64_t key_block) {
  if (a.ring == 0) return key_block * a.block;
  const int64_t period = key_block / a.stride, residue = key_block % a.stride, head = kv_head * (a.heads / a.kv_heads);
  int64_t rank = 0;
  bool seen = false;
  for (int64_t i = 0; i < a.kept; ++i) {
    const int64_t other = residue_of(a, head + i);
    rank += other < residue;
    seen |= other == residue;
  }
  if (seen) return (period * a.kept + rank) * a.block;
  return (a.periods * a.kept + (period * (a.stride - a.kept) + residue - rank) % a.ring) * a.block;
}

// Memory of a part, and of a worker, for tiles of at most `rows` rows: scores, queries and their int8 codes, a block of keys.
constexpr int64_t part_floats(int64_t rows, int64_t width) { return rows * (width + 2); }
constexpr int64_t scratch_floats(int64_t rows, int64_t width) {
  return rows * (kBlock + width + width / 4) + kBlock * (width + 2);
}

struct Loops {
  // Rotates the keys of tokens [first, end), of all KV heads, and stores them and the values in the cache.
  // int8 is symmetric: scale = max|x| / 127, rounded half to even. 4 bits: see nibbles.h.
  void (*write)(const Attention&, int64_t first, int64_t end);
  // Rotates the part's queries and fills part.sums, peaks and totals. scratch: scratch_floats(part.rows, width).
  void (*attend)(const Attention&, const Part& part, float* scratch);
  // Merges the parts (same rows, different keys) into out.
  void (*finish)(const Attention&, const Part* parts, int64_t count);
};

namespace baseline { extern const Loops loops; }
#if defined(__x86_64__)
namespace avx2 { extern const Loops loops; }
namespace avx512 { extern const Loops loops; }
#endif

}  // namespace phi3mobile
