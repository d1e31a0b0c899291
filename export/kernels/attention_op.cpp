// phi3mobile::blocksparse_attention[_int8]: checks, then shares the work of attention_loops.cpp among the threads.
// Decode, one token, waits for the threads once: the few new cache rows are written before, each part rotates its own queries.
// Shapes and meaning: phi3mobile/models/ops.py, the eager reference.
#include "attention.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <new>

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
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (has_avx512 && fits("avx512")) return &avx512::loops;
  if (has_avx2 && fits("avx2")) return &avx2::loops;
#endif
  return fits("baseline") ? &baseline::loops : nullptr;
}

std::atomic<const Loops*> chosen{find_loops(nullptr)};

const Loops& loops() { return *chosen.load(std::memory_order_relaxed); }

constexpr int64_t kWorthThreads = 1 << 15;  // multiply-adds below which threads, awake from the layer before, save nothing
constexpr int64_t kMaxHeads = 1 << 16;     // keeps sizes far from overflow
constexpr int64_t kSplitKeys = 256;         // fewest keys for which splitting a row pays for the merge
constexpr int64_t kPartsPerThread = 4;      // enough that unequal cores finish together

// Runs work(first, end) over [0, count), at least `grain` at a time, on the calling thread alone where that is all.
template <class Work>
bool share(int64_t count, int64_t grain, const Work& work) {
  if (count > grain) return executorch::extension::parallel_for(0, count, grain, work);
  work(0, count);
  return true;
}

// Every tile of rows of every KV head, its keys split where there would be too few parts for the threads. A free thread takes
// the next part. False: no memory.
bool attend_all(const Attention& a) {
  const int64_t group = a.heads / a.kv_heads, rows = a.count * group, end = a.position + a.count;
  const int64_t seen = a.window > 0 ? std::min(a.window + a.count - 1, end) : end;
  const int64_t threads = rows * a.kv_heads * seen * a.width < kWorthThreads ? 1 : executorch::extension::get_thread_count();
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows, wholes = tiles * a.kv_heads, tile_rows = std::min(rows, kTileRows);
  const int64_t wanted = threads > 1 ? (kPartsPerThread * threads + wholes - 1) / wholes : 1;
  const int64_t splits = std::max<int64_t>(1, std::min(wanted, seen / kSplitKeys));
  const int64_t jobs = wholes * splits;

  const int64_t kept = splits > 1 ? jobs : threads;  // results in memory at once
  const int64_t part_size = part_floats(tile_rows, a.width), scratch_size = scratch_floats(tile_rows, a.width);
  std::unique_ptr<float[]> memory(new (std::nothrow) float[kept * part_size + threads * scratch_size]);
  std::unique_ptr<Part[]> parts(new (std::nothrow) Part[kept]);
  if (!memory || !parts) return false;

  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t first_worker, int64_t end_worker) {
    for (int64_t worker = first_worker; worker < end_worker; ++worker) {
      float* scratch = memory.get() + kept * part_size + worker * scratch_size;
      for (int64_t job = next++; job < jobs; job = next++) {
        const int64_t slot = splits > 1 ? job : worker, whole = job / splits, split = job % splits;
        Part& part = parts[slot];
        part.kv_head = whole % a.kv_heads;
        part.first_row = (tiles - 1 - whole / a.kv_heads) * kTileRows;  // the longest first
        part.rows = std::min(kTileRows, rows - part.first_row);
        const int64_t first = a.window > 0 ? std::max<int64_t>(0, a.position + part.first_row / group + 1 - a.window) : 0;
        const int64_t last = a.position + (part.first_row + part.rows - 1) / group;
        const int64_t share = ((last + 1 - first + splits - 1) / splits + kBlock - 1) / kBlock * kBlock;
        part.first_key = first + split * share;
        part.end_key = std::min(last + 1, part.first_key + share);
        part.sums = memory.get() + slot * part_size;
        part.peaks = part.sums + tile_rows * a.width;
        part.totals = part.peaks + tile_rows;
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

bool is_dense(const Tensor& x, ScalarType type, std::initializer_list<int64_t> sizes) {
  if (x.scalar_type() != type || x.dim() != static_cast<int64_t>(sizes.size())) return false;
  int64_t i = 0;
  for (const int64_t size : sizes) {
    if (x.size(i) != size || x.dim_order()[i] != i) return false;
    ++i;
  }
  return true;
}

Tensor& attention(
    KernelRuntimeContext& context, const Tensor& qkv, const Tensor& cos, const Tensor& sin, const Tensor& k_cache,
    const Tensor& v_cache, const Tensor* k_scale, const Tensor* v_scale, const Tensor& input_pos, int64_t heads, int64_t window,
    double scale, int64_t block, Tensor& out) {
  ET_KERNEL_CHECK_MSG(context, block == 0, NotSupported, out, "attention: only the dense form, block 0, is implemented");
  ET_KERNEL_CHECK_MSG(
      context, qkv.dim() == 2 && cos.dim() == 2 && k_cache.dim() == 4 && window >= 0, InvalidArgument, out,
      "attention: qkv [T, (H + 2 Hkv) * D], cos [T, R], k_cache [1, Hkv, S, D] and window >= 0 are expected");
  const int64_t count = qkv.size(0), half = cos.size(1), kv_heads = k_cache.size(1), capacity = k_cache.size(2);
  const int64_t width = k_cache.size(3);
  // Named, because the log prints the condition before the message, and cuts the line.
  const bool supported = kv_heads > 0 && heads > 0 && heads % kv_heads == 0 && heads <= kMaxHeads && width > 0 &&
      width % 16 == 0 && width <= kMaxWidth && half >= 1 && half <= width / 2;
  ET_KERNEL_CHECK_MSG(
      context, supported, InvalidArgument, out,
      "attention: %lld heads of %lld over %lld KV heads, rotated by %lld angles, are not supported",
      (long long)heads, (long long)width, (long long)kv_heads, (long long)half);
  const ScalarType stored = k_scale ? ScalarType::Char : ScalarType::Float;
  const bool fits = is_dense(qkv, ScalarType::Float, {count, (heads + 2 * kv_heads) * width}) &&
      is_dense(cos, ScalarType::Float, {count, half}) && is_dense(sin, ScalarType::Float, {count, half}) &&
      is_dense(k_cache, stored, {1, kv_heads, capacity, width}) && is_dense(v_cache, stored, {1, kv_heads, capacity, width}) &&
      is_dense(input_pos, ScalarType::Long, {1}) &&
      (!k_scale ||
       (is_dense(*k_scale, ScalarType::Float, {1, kv_heads, capacity}) &&
        is_dense(*v_scale, ScalarType::Float, {1, kv_heads, capacity})));
  ET_KERNEL_CHECK_MSG(
      context, fits, InvalidArgument, out,
      "attention: shapes or types of qkv, cos, sin, caches and input_pos do not fit %lld heads", (long long)heads);
  const int64_t position = input_pos.const_data_ptr<int64_t>()[0];
  const bool inside = position >= 0 && position <= capacity && count <= capacity - position;
  ET_KERNEL_CHECK_MSG(
      context, inside, InvalidArgument, out,
      "attention: %lld tokens at position %lld are outside the KV cache of %lld", (long long)count, (long long)position,
      (long long)capacity);

  const SizesType sizes[2] = {SizesType(count), SizesType(heads * width)};
  ET_KERNEL_CHECK_MSG(
      context,
      out.scalar_type() == ScalarType::Float &&
          executorch::ET_RUNTIME_NAMESPACE::resize_tensor(out, {sizes, 2}) == Error::Ok,
      InvalidArgument, out, "attention: the result must be float32 and hold [T, H * D]");
  if (count == 0) return out;

  // The schema makes the caches mutable, but EXECUTORCH_LIBRARY knows only one mutable tensor, the result: they come const.
  Attention a{};
  a.qkv = qkv.const_data_ptr<float>(), a.cos = cos.const_data_ptr<float>(), a.sin = sin.const_data_ptr<float>();
  a.out = out.mutable_data_ptr<float>();
  a.k_cache = const_cast<void*>(k_cache.const_data_ptr());
  a.v_cache = const_cast<void*>(v_cache.const_data_ptr());
  a.k_scale = k_scale ? const_cast<float*>(k_scale->const_data_ptr<float>()) : nullptr;
  a.v_scale = v_scale ? const_cast<float*>(v_scale->const_data_ptr<float>()) : nullptr;
  a.count = count, a.heads = heads, a.kv_heads = kv_heads, a.width = width, a.capacity = capacity, a.half = half;
  a.position = position, a.window = window, a.scale = static_cast<float>(scale);

  const auto write = [&](int64_t first, int64_t end) { loops().write(a, first, end); };
  ET_KERNEL_CHECK_MSG(
      context, share(count, 1 + kWorthThreads / (2 * kv_heads * width), write) && attend_all(a), MemoryAllocationFailed, out,
      "attention: no memory for its scratch");
  return out;
}

Tensor& attention_out(
    KernelRuntimeContext& context, const Tensor& qkv, const Tensor& cos, const Tensor& sin, const Tensor& k_cache,
    const Tensor& v_cache, const Tensor& input_pos, int64_t heads, int64_t window, double scale, int64_t block,
    int64_t /*local_blocks*/, int64_t /*stride*/, Tensor& out) {
  return attention(
      context, qkv, cos, sin, k_cache, v_cache, nullptr, nullptr, input_pos, heads, window, scale, block, out);
}

Tensor& attention_int8_out(
    KernelRuntimeContext& context, const Tensor& qkv, const Tensor& cos, const Tensor& sin, const Tensor& k_cache,
    const Tensor& v_cache, const Tensor& k_scale, const Tensor& v_scale, const Tensor& input_pos, int64_t heads,
    int64_t window, double scale, int64_t block, int64_t /*local_blocks*/, int64_t /*stride*/, Tensor& out) {
  return attention(
      context, qkv, cos, sin, k_cache, v_cache, &k_scale, &v_scale, input_pos, heads, window, scale, block, out);
}

EXECUTORCH_LIBRARY(phi3mobile, "blocksparse_attention.out", attention_out);
EXECUTORCH_LIBRARY(phi3mobile, "blocksparse_attention_int8.out", attention_int8_out);

}  // namespace

bool use_isa(const char* isa) {
  const Loops* found = find_loops(isa);
  if (found) chosen = found;
  return found != nullptr;
}

}  // namespace phi3mobile
