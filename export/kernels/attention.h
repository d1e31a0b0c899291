// Causal attention over a KV cache: the plain interface between the operator (attention_op.cpp) and its loops
// (attention_loops.cpp, compiled once per instruction set). No ExecuTorch and no STL here.
#pragma once

#include <stdint.h>

namespace phi3mobile {

constexpr int64_t kBlock = 64;      // keys handled at once: their scores stay in L1
constexpr int64_t kTileRows = 32;   // query rows handled at once; a row is one query head of one token
constexpr int64_t kMaxWidth = 256;  // widest head

// One call of the operator. Rows of KV head g are numbered token-major: row = token * group + head within the group.
struct Attention {
  const float* qkv;  // [T, (H + 2 Hkv) * D]: all Q, all K, all V, not yet rotated
  const float* cos;  // [T, R]
  const float* sin;
  float* out;        // [T, H, D]
  void* k_cache;     // [Hkv, S, D], float32 or int8
  void* v_cache;
  float* k_scale;    // [Hkv, S]; null for a float32 cache
  float* v_scale;
  int64_t count, heads, kv_heads, width, capacity, half;  // T, H, Hkv, D, S, R
  int64_t position;  // of the first token
  int64_t window;    // keys a query sees, itself included; 0: all before it
  float scale;
};

// A piece of the work: some rows of one KV head against some keys, and its unnormalised result.
struct Part {
  int64_t kv_head, first_row, rows, first_key, end_key;
  float* sums;    // [rows, D]: sum of exp(score - peak) * value
  float* peaks;   // [rows]: highest score
  float* totals;  // [rows]: sum of exp(score - peak)
};

// Memory of a part, and of a worker, for tiles of at most `rows` rows.
constexpr int64_t part_floats(int64_t rows, int64_t width) { return rows * (width + 2); }
constexpr int64_t scratch_floats(int64_t rows, int64_t width) { return rows * (kBlock + width) + kBlock * (width + 2); }

struct Loops {
  // Rotates the keys of tokens [first, end), of all KV heads, and stores them and the values in the cache.
  // int8 is symmetric: scale = max|x| / 127, rounded half to even.
  void (*write)(const Attention&, int64_t first, int64_t end);
  // Rotates the part's queries and fills part.sums, peaks and totals. scratch: scratch_floats(part.rows, width).
  void (*attend)(const Attention&, const Part& part, float* scratch);
  // Merges the parts (same rows, different keys) into out.
  void (*finish)(const Attention&, const Part* parts, int64_t count);
};

// Picks the loops of one instruction set, null: the machine's best, as at start. False: the machine lacks it.
bool use_isa(const char* isa);

namespace baseline { extern const Loops loops; }
#if defined(__x86_64__)
namespace avx2 { extern const Loops loops; }
namespace avx512 { extern const Loops loops; }
#endif

}  // namespace phi3mobile
