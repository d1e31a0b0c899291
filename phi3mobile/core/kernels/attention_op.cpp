// phi3mobile::blocksparse_attention[_int8, _int4]: checks, then shares the work of attention_loops.cpp among the threads.
// Decode, one token, waits for the threads once: the few new cache rows are written before, each part rotates its own queries.
// Shapes and meaning: phi3mobile/models/ops.py, the eager reference.
#include "attention.h"
#include "processor.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <new>
#include <numeric>

#include <executorch/extension/kernel_util/make_boxed_from_unboxed_functor.h>
#include <executorch/runtime/kernel/kernel_includes.h>
#include <executorch/runtime/kernel/thread_parallel_interface.h>

namespace phi3mobile {
namespace {

using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using executorch::aten::Tensor;
using executorch::runtime::Error;
using executorch::runtime::KernelRuntimeContext;

const Loops* find_loops(const char* isa) {
  const auto fits = [&](const char* name) { return isa == nullptr || std::strcmp(isa, name) == 0; };
#if defined(__x86_64__)
  if (has_avx512() && fits("avx512")) return &avx512::loops;
  if (has_avx2() && fits("avx2")) return &avx2::loops;
#endif
  return fits("baseline") ? &baseline::loops : nullptr;
}

std::atomic<const Loops*> chosen{find_loops(nullptr)};

const Loops& loops() { return *chosen.load(std::memory_order_relaxed); }

constexpr int64_t kWorthThreads = 1 << 15;  // multiply-adds below which threads, awake from the layer before, save nothing
constexpr int64_t kMaxHeads = 1 << 16;      // keeps sizes far from overflow
constexpr int64_t kMostPattern = 1 << 20;   // block, local_blocks, stride, head_step; likewise
constexpr int64_t kSplitKeys = 256;         // fewest keys for which splitting a row pays for the merge
constexpr int64_t kPartsPerThread = 4;      // enough that unequal cores finish together

// Runs work(first, end) over [0, count), at least `grain` at a time, on the calling thread alone where that is all.
template <class Work>
bool share(int64_t count, int64_t grain, const Work& work) {
  if (count > grain) return executorch::extension::parallel_for(0, count, grain, work);
  work(0, count);
  return true;
}

// How the rows of a call are cut: tiles of rows of every KV head, the longest first where causality makes them unequal.
struct Plan {
  int64_t tiles, tile_rows;
  int64_t keys;                                 // that the last row sees, about
  int64_t tile_tokens, tile_heads, first_tile;  // sparse: tiles end with a query block and are counted from position 0

  explicit Plan(const Attention& a) {
    const int64_t group = a.heads / a.kv_heads, end = a.position + a.count;
    if (a.block == 0) {
      tile_rows = std::min(a.count * group, kTileRows);
      tiles = (a.count * group + kTileRows - 1) / kTileRows;
      keys = a.window > 0 ? std::min(a.window + a.count - 1, end) : end;
      return;
    }
    tile_heads = std::min(group, kSparseRows);
    tile_tokens = std::min(a.block, kSparseRows / tile_heads);
    tile_rows = std::min(a.count, tile_tokens) * tile_heads;
    first_tile = tile_at(a, a.position);
    tiles = (tile_at(a, end - 1) - first_tile + 1) * head_tiles(a);
    keys = std::min(end, seen_from(a, (end - 1) / a.block, 0, 1).count * a.block);
  }

  int64_t head_tiles(const Attention& a) const { return (a.heads / a.kv_heads + tile_heads - 1) / tile_heads; }
  int64_t tiles_per_block(const Attention& a) const { return (a.block + tile_tokens - 1) / tile_tokens; }
  int64_t tile_at(const Attention& a, int64_t position) const {
    return position / a.block * tiles_per_block(a) + position % a.block / tile_tokens;
  }

  // The rows of tile number `tile`, from the last to the first, and piece `split` of `splits` of their keys.
  void lay(const Attention& a, int64_t tile, int64_t split, int64_t splits, Part* part) const {
    const int64_t group = a.heads / a.kv_heads;
    if (a.block == 0) {
      part->first_row = (tiles - 1 - tile) * kTileRows;
      part->rows = std::min(kTileRows, a.count * group - part->first_row);
      const int64_t first = a.window > 0 ? std::max<int64_t>(0, a.position + part->first_row / group + 1 - a.window) : 0;
      const int64_t last = a.position + (part->first_row + part->rows - 1) / group;
      const int64_t share = ((last + 1 - first + splits - 1) / splits + kBlock - 1) / kBlock * kBlock;
      part->first_key = first + split * share;
      part->end_key = std::min(last + 1, part->first_key + share);
      return;
    }
    const int64_t at = first_tile + (tiles - 1 - tile) / head_tiles(a), query_block = at / tiles_per_block(a);
    const int64_t start = query_block * a.block + at % tiles_per_block(a) * tile_tokens;
    const int64_t end = std::min({start + tile_tokens, (query_block + 1) * a.block, a.position + a.count});
    part->first_token = std::max(start, a.position) - a.position;
    part->tokens = end - a.position - part->first_token;
    part->first_head = (tiles - 1 - tile) % head_tiles(a) * tile_heads;
    const int64_t heads = std::min(tile_heads, group - part->first_head);
    part->rows = part->tokens * heads;
    const int64_t blocks = seen_from(a, query_block, part->kv_head * group + part->first_head, heads).count;
    part->first_key = blocks * split / splits;
    part->end_key = blocks * (split + 1) / splits;
  }
};

// Every tile of every KV head, its keys split where there would be too few parts for the threads. A free thread takes the next
// part. False: no memory.
bool attend_all(const Attention& a) {
  const Plan plan(a);
  const int64_t work_size = a.count * a.heads * plan.keys * a.width;
  const int64_t threads = work_size < kWorthThreads ? 1 : executorch::extension::get_thread_count();
  const int64_t wholes = plan.tiles * a.kv_heads;
  const int64_t wanted = threads > 1 ? (kPartsPerThread * threads + wholes - 1) / wholes : 1;
  const int64_t splits = std::max<int64_t>(1, std::min(wanted, plan.keys / kSplitKeys));
  const int64_t jobs = wholes * splits;

  const int64_t kept = splits > 1 ? jobs : threads;  // results in memory at once
  const int64_t part_size = part_floats(plan.tile_rows, a.width), scratch_size = scratch_floats(plan.tile_rows, a.width);
  std::unique_ptr<float[]> memory(new (std::nothrow) float[kept * part_size + threads * scratch_size]);
  std::unique_ptr<Part[]> parts(new (std::nothrow) Part[kept]);
  if (!memory || !parts) return false;

  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t first_worker, int64_t end_worker) {
    for (int64_t worker = first_worker; worker < end_worker; ++worker) {
      float* scratch = memory.get() + kept * part_size + worker * scratch_size;
      for (int64_t job = next++; job < jobs; job = next++) {
        const int64_t slot = splits > 1 ? job : worker, whole = job / splits;
        Part& part = parts[slot];
        part.kv_head = whole % a.kv_heads;
        plan.lay(a, whole / a.kv_heads, job % splits, splits, &part);
        part.sums = memory.get() + slot * part_size;
        part.peaks = part.sums + plan.tile_rows * a.width;
        part.totals = part.peaks + plan.tile_rows;
        loops().attend(a, part, scratch);
        if (splits == 1) loops().finish(a, &part, 1);
      }
    }
  };
  if (!share(threads, 1, work)) return false;
  if (splits > 1) {
    for (int64_t whole = 0; whole < wholes; ++whole) loops().finish(a, &parts[whole * splits], splits);
  }
  return true;
}

// Consecutive blocks that are in an evicting cache at once, wherever they start.
int64_t reach_of(const Attention& a) {
  const int64_t passing = a.stride - a.kept;
  return a.ring / passing * a.stride + a.ring % passing;
}

// The first position whose int8 row the ring still has, before tokens are written from a.position on.
int64_t ring_start(const Attention& a) {
  return std::clamp<int64_t>(std::max(a.coarse.mark[0], a.coarse.mark[1] - kRing), 0, a.position);
}

// Writes the new rows and attends. A cache with a ring takes as many tokens at once as it holds beside their local window.
// False: no memory.
bool run(Attention a) {
  const int64_t end = a.position + a.count, columns = (a.heads + 2 * a.kv_heads) * a.width;
  while (a.position < end) {
    a.count = end - a.position;
    if (a.ring) {
      const int64_t oldest = std::max<int64_t>(0, a.position / a.block - a.local_blocks + 1);
      a.count = std::min(a.count, (oldest + reach_of(a)) * a.block - a.position);
    }
    if (a.coarse.keys) {
      a.count = std::min(a.count, kRing - kRecent);
      a.coarse.ring_from = ring_start(a);
      a.coarse.mark[0] = a.coarse.ring_from, a.coarse.mark[1] = a.position + a.count;
    }
    const auto write = [&](int64_t first, int64_t last) { loops().write(a, first, last); };
    if (!share(a.count, 1 + kWorthThreads / (2 * a.kv_heads * a.width), write) || !attend_all(a)) return false;
    a.qkv += a.count * columns, a.cos += a.count * a.half, a.sin += a.count * a.half;
    a.out += a.count * a.heads * a.width;
    a.position += a.count;
  }
  return true;
}

bool is_dense(const Tensor& x, ScalarType type, std::initializer_list<int64_t> sizes) {
  if (x.scalar_type() != type || x.dim() != static_cast<int64_t>(sizes.size())) return false;
  int64_t i = 0;
  for (const int64_t size : sizes) {
    if (x.size(i) != size || x.dim_order()[i] != i) return false;
    ++i;
  }
  return true;
}

// Rows of 4 bits, of an operator whose other caches are a ring of int8 rows.
struct CoarseOperands {
  const Tensor &keys, &values, &k_scale, &v_scale, &mark;
};

// What the operators share; null where an operator has none.
struct Operands {
  const Tensor &qkv, &cos, &sin, &k_cache, &v_cache;
  const Tensor *k_scale, *v_scale, *mark;
  const Tensor& input_pos;
  int64_t heads, window;
  double scale;
  int64_t block, local_blocks, stride, head_step, ring;
  const CoarseOperands* coarse = nullptr;
};

// False: shapes or types do not fit. The schema makes caches mutable, see attention().
bool take_coarse(const CoarseOperands& o, Attention* a) {
  if (o.keys.dim() != 4 || a->width % kGroup || a->capacity != kRing) return false;
  Coarse& coarse = a->coarse;
  coarse.capacity = o.keys.size(2);
  const auto rows_fit = [&](const Tensor& x) {
    return is_dense(x, ScalarType::Byte, {1, a->kv_heads, coarse.capacity, a->width / 2});
  };
  const auto scales_fit = [&](const Tensor& x) {
    return is_dense(x, ScalarType::BFloat16, {1, a->kv_heads, a->width / kGroup, coarse.capacity});
  };
  const bool fits = rows_fit(o.keys) && rows_fit(o.values) && scales_fit(o.k_scale) && scales_fit(o.v_scale) &&
                    is_dense(o.mark, ScalarType::Long, {2});
  if (!fits) return false;
  coarse.keys = static_cast<uint8_t*>(const_cast<void*>(o.keys.const_data_ptr()));
  coarse.values = static_cast<uint8_t*>(const_cast<void*>(o.values.const_data_ptr()));
  coarse.k_scale = static_cast<uint16_t*>(const_cast<void*>(o.k_scale.const_data_ptr()));
  coarse.v_scale = static_cast<uint16_t*>(const_cast<void*>(o.v_scale.const_data_ptr()));
  coarse.mark = const_cast<int64_t*>(o.mark.const_data_ptr<int64_t>());
  return true;
}

// The sparse form's numbers, once they are known to mean something.
bool take_pattern(const Operands& o, Attention* a) {
  const auto fits = [](int64_t x, int64_t least) { return x >= least && x <= kMostPattern; };
  if (!fits(o.block, 1) || !fits(o.local_blocks, 1) || !fits(o.stride, 1) || !fits(o.head_step, 0) || o.window != 0)
    return false;
  a->block = o.block, a->local_blocks = o.local_blocks, a->stride = o.stride, a->head_step = o.head_step;
  return true;
}

// An evicting cache's geometry, from its number of rows; see blocksparse.evicting_cache. False: they do not fit each other.
bool take_ring(const Operands& o, Attention* a) {
  a->kept = std::min(a->heads / a->kv_heads, a->stride / std::gcd(a->head_step, a->stride));
  a->ring = o.ring;
  const int64_t blocks = a->capacity / a->block, kept_blocks = blocks - a->ring;
  if (a->ring < 1 || a->ring >= blocks || a->capacity % a->block || a->kept >= a->stride || kept_blocks % a->kept) return false;
  a->periods = kept_blocks / a->kept;
  return reach_of(*a) >= a->local_blocks;
}

Tensor& attention(KernelRuntimeContext& context, const Operands& o, Tensor& out) {
  const Tensor &qkv = o.qkv, &cos = o.cos, &k_cache = o.k_cache;
  ET_KERNEL_CHECK_MSG(context, qkv.dim() == 2 && cos.dim() == 2 && k_cache.dim() == 4 && o.window >= 0, InvalidArgument, out,
      "attention: qkv [T, (H + 2 Hkv) * D], cos [T, R], k_cache [1, Hkv, S, D] and window >= 0 are expected");
  Attention a{};
  a.count = qkv.size(0), a.heads = o.heads, a.kv_heads = k_cache.size(1), a.width = k_cache.size(3), a.half = cos.size(1);
  a.capacity = k_cache.size(2);
  // Named, because the log prints the condition before the message, and cuts the line.
  const bool supported = a.kv_heads > 0 && a.heads > 0 && a.heads % a.kv_heads == 0 && a.heads <= kMaxHeads && a.width > 0 &&
                         a.width % 16 == 0 && a.width <= kMaxWidth && a.half >= 1 && a.half <= a.width / 2;
  ET_KERNEL_CHECK_MSG(context, supported, InvalidArgument, out,
      "attention: %lld heads of %lld over %lld KV heads, rotated by %lld angles, are not supported", (long long)a.heads,
      (long long)a.width, (long long)a.kv_heads, (long long)a.half);
  const ScalarType stored = o.k_scale ? ScalarType::Char : ScalarType::Float;
  const auto rows_fit = [&](const Tensor& x) { return is_dense(x, stored, {1, a.kv_heads, a.capacity, a.width}); };
  const auto scales_fit = [&](const Tensor& x) { return is_dense(x, ScalarType::Float, {1, a.kv_heads, a.capacity}); };
  const bool fits = is_dense(qkv, ScalarType::Float, {a.count, (a.heads + 2 * a.kv_heads) * a.width}) &&
                    is_dense(cos, ScalarType::Float, {a.count, a.half}) &&
                    is_dense(o.sin, ScalarType::Float, {a.count, a.half}) && rows_fit(k_cache) && rows_fit(o.v_cache) &&
                    is_dense(o.input_pos, ScalarType::Long, {1}) &&
                    (!o.k_scale || (scales_fit(*o.k_scale) && scales_fit(*o.v_scale))) &&
                    (!o.mark || is_dense(*o.mark, ScalarType::Long, {1})) && (!o.coarse || take_coarse(*o.coarse, &a));
  ET_KERNEL_CHECK_MSG(context, fits, InvalidArgument, out,
      "attention: shapes or types of qkv, cos, sin, caches and input_pos do not fit %lld heads", (long long)a.heads);
  const bool sensible = (o.block == 0 && !o.mark) || take_pattern(o, &a);
  ET_KERNEL_CHECK_MSG(context, sensible, InvalidArgument, out,
      "attention: block %lld, local_blocks %lld, stride %lld, head_step %lld, window %lld mean no pattern", (long long)o.block,
      (long long)o.local_blocks, (long long)o.stride, (long long)o.head_step, (long long)o.window);
  const bool geometry = !o.mark || take_ring(o, &a);
  ET_KERNEL_CHECK_MSG(context, geometry, InvalidArgument, out,
      "attention: a ring of %lld blocks does not fit a cache of %lld rows", (long long)o.ring, (long long)a.capacity);

  a.position = o.input_pos.const_data_ptr<int64_t>()[0];
  const int64_t rows = a.coarse.keys ? a.coarse.capacity : a.capacity;
  const int64_t positions = a.ring ? a.periods * a.stride * a.block : rows;
  const bool inside = a.position >= 0 && a.position <= positions && a.count <= positions - a.position;
  ET_KERNEL_CHECK_MSG(context, inside, InvalidArgument, out,
      "attention: %lld tokens at position %lld are outside the KV cache of %lld", (long long)a.count, (long long)a.position,
      (long long)positions);
  // The schema makes caches and mark mutable, but EXECUTORCH_LIBRARY knows only one mutable tensor, the result: they come
  // const.
  int64_t* mark = o.mark ? const_cast<int64_t*>(o.mark->const_data_ptr<int64_t>()) : nullptr;
  const int64_t farthest = mark && a.position > 0 ? std::clamp<int64_t>(*mark, 0, positions) : 0;
  if (farthest > 0) {
    const int64_t oldest = std::max<int64_t>(0, a.position / a.block - a.local_blocks + 1);
    const bool there = (farthest - 1) / a.block - oldest < reach_of(a);
    ET_KERNEL_CHECK_MSG(context, there, InvalidArgument, out,
        "attention: position %lld is too far behind %lld for this evicted KV cache, which lets positions go back by %lld: "
        "start again from position 0",
        (long long)a.position, (long long)farthest, (long long)((reach_of(a) - a.local_blocks) * a.block));
  }

  const SizesType sizes[2] = {SizesType(a.count), SizesType(a.heads * a.width)};
  ET_KERNEL_CHECK_MSG(context,
      out.scalar_type() == ScalarType::Float && executorch::ET_RUNTIME_NAMESPACE::resize_tensor(out, {sizes, 2}) == Error::Ok,
      InvalidArgument, out, "attention: the result must be float32 and hold [T, H * D]");
  if (a.count == 0) return out;

  a.qkv = qkv.const_data_ptr<float>(), a.cos = cos.const_data_ptr<float>(), a.sin = o.sin.const_data_ptr<float>();
  a.out = out.mutable_data_ptr<float>();
  a.k_cache = const_cast<void*>(k_cache.const_data_ptr());
  a.v_cache = const_cast<void*>(o.v_cache.const_data_ptr());
  a.k_scale = o.k_scale ? const_cast<float*>(o.k_scale->const_data_ptr<float>()) : nullptr;
  a.v_scale = o.v_scale ? const_cast<float*>(o.v_scale->const_data_ptr<float>()) : nullptr;
  a.scale = static_cast<float>(o.scale), a.window = o.window;
  ET_KERNEL_CHECK_MSG(context, run(a), MemoryAllocationFailed, out, "attention: no memory for its scratch");
  if (mark) *mark = std::max(farthest, a.position + a.count);
  return out;
}

Tensor& attention_out(KernelRuntimeContext& context, const Tensor& qkv, const Tensor& cos, const Tensor& sin,
    const Tensor& k_cache, const Tensor& v_cache, const Tensor& input_pos, int64_t heads, int64_t window, double scale,
    int64_t block, int64_t local_blocks, int64_t stride, int64_t head_step, Tensor& out) {
  return attention(context,
      {qkv, cos, sin, k_cache, v_cache, nullptr, nullptr, nullptr, input_pos, heads, window, scale, block, local_blocks, stride,
          head_step, 0},
      out);
}

Tensor& attention_int8_out(KernelRuntimeContext& context, const Tensor& qkv, const Tensor& cos, const Tensor& sin,
    const Tensor& k_cache, const Tensor& v_cache, const Tensor& k_scale, const Tensor& v_scale, const Tensor& input_pos,
    int64_t heads, int64_t window, double scale, int64_t block, int64_t local_blocks, int64_t stride, int64_t head_step,
    Tensor& out) {
  return attention(context,
      {qkv, cos, sin, k_cache, v_cache, &k_scale, &v_scale, nullptr, input_pos, heads, window, scale, block, local_blocks,
          stride, head_step, 0},
      out);
}

Tensor& attention_int4_out(KernelRuntimeContext& context, const Tensor& qkv, const Tensor& cos, const Tensor& sin,
    const Tensor& k_cache, const Tensor& v_cache, const Tensor& k_scale, const Tensor& v_scale, const Tensor& k_ring,
    const Tensor& v_ring, const Tensor& k_ring_scale, const Tensor& v_ring_scale, const Tensor& mark, const Tensor& input_pos,
    int64_t heads, int64_t window, double scale, Tensor& out) {
  const CoarseOperands coarse{k_cache, v_cache, k_scale, v_scale, mark};
  return attention(context,
      {qkv, cos, sin, k_ring, v_ring, &k_ring_scale, &v_ring_scale, nullptr, input_pos, heads, window, scale, 0, 0, 0, 0, 0,
          &coarse},
      out);
}

Tensor& evicting_out(KernelRuntimeContext& context, const Tensor& qkv, const Tensor& cos, const Tensor& sin,
    const Tensor& k_cache, const Tensor& v_cache, const Tensor& mark, const Tensor& input_pos, int64_t heads, double scale,
    int64_t block, int64_t local_blocks, int64_t stride, int64_t head_step, int64_t ring, Tensor& out) {
  return attention(context,
      {qkv, cos, sin, k_cache, v_cache, nullptr, nullptr, &mark, input_pos, heads, 0, scale, block, local_blocks, stride,
          head_step, ring},
      out);
}

Tensor& evicting_int8_out(KernelRuntimeContext& context, const Tensor& qkv, const Tensor& cos, const Tensor& sin,
    const Tensor& k_cache, const Tensor& v_cache, const Tensor& k_scale, const Tensor& v_scale, const Tensor& mark,
    const Tensor& input_pos, int64_t heads, double scale, int64_t block, int64_t local_blocks, int64_t stride,
    int64_t head_step, int64_t ring, Tensor& out) {
  return attention(context,
      {qkv, cos, sin, k_cache, v_cache, &k_scale, &v_scale, &mark, input_pos, heads, 0, scale, block, local_blocks, stride,
          head_step, ring},
      out);
}

// As EXECUTORCH_LIBRARY, which takes arguments by number without counting them: a program exported before an operator got its
// last argument would end the process.
template <size_t kArguments, class Function>
executorch::runtime::Kernel counted(const char* name, Function) {
  return executorch::runtime::Kernel(
      name, [](KernelRuntimeContext& context, executorch::runtime::Span<executorch::runtime::EValue*> stack) {
        if (stack.size() <= kArguments || !(stack[kArguments - 1]->isInt() || stack[kArguments - 1]->isDouble()) ||
            !stack[kArguments]->isTensor()) {
          ET_LOG(Error, "attention: the program is from another version of phi3mobile: export it again");
          context.fail(Error::InvalidProgram);
          return;
        }
        executorch::extension::WrapUnboxedIntoFunctor<Function>::call(context, stack);
      });
}

constexpr char kDense[] = "phi3mobile::blocksparse_attention.out", kDenseInt8[] = "phi3mobile::blocksparse_attention_int8.out";
constexpr char kDenseInt4[] = "phi3mobile::blocksparse_attention_int4.out";
constexpr char kEvicting[] = "phi3mobile::blocksparse_attention_evicting.out";
constexpr char kEvictingInt8[] = "phi3mobile::blocksparse_attention_evicting_int8.out";

// The count is the place of the result.
const executorch::runtime::Kernel kernels[] = {
    counted<16>(kDenseInt4, EXECUTORCH_FN(attention_int4_out, kDenseInt4)),
    counted<13>(kDense, EXECUTORCH_FN(attention_out, kDense)),
    counted<15>(kDenseInt8, EXECUTORCH_FN(attention_int8_out, kDenseInt8)),
    counted<14>(kEvicting, EXECUTORCH_FN(evicting_out, kEvicting)),
    counted<16>(kEvictingInt8, EXECUTORCH_FN(evicting_int8_out, kEvictingInt8)),
};
[[maybe_unused]] const auto registered = executorch::runtime::register_kernels({kernels, 5});

}  // namespace

bool use_isa(const char* isa) {
  const Loops* found = find_loops(isa);
  if (found) chosen = found;
  return found != nullptr;
}

const char* used_isa() {
  const Loops* used = chosen;
#if defined(__x86_64__)
  if (used == &avx512::loops) return "avx512";
  if (used == &avx2::loops) return "avx2";
#elif defined(__aarch64__)
  if (used == &baseline::loops) return "neon";
#endif
  return used == &baseline::loops ? "baseline" : "";
}

}  // namespace phi3mobile
