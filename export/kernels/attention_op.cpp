// phi3mobile::blocksparse_attention[_int8]: checks, writes the new rows into the cache, shares the work among the threads.
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

constexpr int64_t kWorthThreads = 1 << 15;  // multiply-adds below which waking threads costs more than it saves
constexpr int64_t kSplitKeys = 256;         // fewest keys for which splitting a row pays for the merge
constexpr int64_t kPartsPerThread = 4;      // enough that unequal cores finish together

// The caches after writing: rows k, v [T, Hkv, D] at [position, position + T) of [Hkv, S, D].
void write_rows(
    const Attention& a, const float* k, const float* v, Tensor& k_cache, Tensor& v_cache, float* k_scale, float* v_scale) {
  for (int64_t head = 0; head < a.kv_heads; ++head) {
    for (int64_t t = 0; t < a.count; ++t) {
      const int64_t from = (t * a.kv_heads + head) * a.width, at = head * a.capacity + a.position + t;
      if (k_scale) {
        loops().quantize(k + from, a.width, k_cache.mutable_data_ptr<int8_t>() + at * a.width, k_scale + at);
        loops().quantize(v + from, a.width, v_cache.mutable_data_ptr<int8_t>() + at * a.width, v_scale + at);
      } else {
        std::memcpy(k_cache.mutable_data_ptr<float>() + at * a.width, k + from, a.width * sizeof(float));
        std::memcpy(v_cache.mutable_data_ptr<float>() + at * a.width, v + from, a.width * sizeof(float));
      }
    }
  }
}

// Every tile of rows of every KV head, its keys split where there would be too few parts for the threads. A free thread takes
// the next part. False: no memory.
bool attend_all(const Attention& a) {
  const int64_t group = a.heads / a.kv_heads, rows = a.count * group, end = a.position + a.count;
  const int64_t threads = rows * a.kv_heads * end * a.width < kWorthThreads ? 1 : executorch::extension::get_thread_count();
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows, wholes = tiles * a.kv_heads;
  const int64_t seen = a.window > 0 ? std::min(a.window + a.count - 1, end) : end;
  const int64_t wanted = threads > 1 ? (kPartsPerThread * threads + wholes - 1) / wholes : 1;
  const int64_t splits = std::max<int64_t>(1, std::min(wanted, seen / kSplitKeys));
  const int64_t jobs = wholes * splits;

  const int64_t kept = splits > 1 ? jobs : threads;  // results in memory at once
  const int64_t part_size = part_floats(a.width), scratch_size = scratch_floats(a.width);
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
        part.peaks = part.sums + kTileRows * a.width;
        part.totals = part.peaks + kTileRows;
        loops().attend(a, part, scratch);
        if (splits == 1) loops().finish(a, &part, 1);
      }
    }
  };
  if (threads == 1) {
    work(0, 1);
  } else if (!executorch::extension::parallel_for(0, threads, 1, work)) {
    return false;
  }
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
    KernelRuntimeContext& context, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& k_cache,
    const Tensor& v_cache, const Tensor* k_scale, const Tensor* v_scale, const Tensor& input_pos, int64_t window,
    double scale, int64_t block, Tensor& out) {
  ET_KERNEL_CHECK_MSG(context, block == 0, NotSupported, out, "only the dense form, block 0, is implemented");
  ET_KERNEL_CHECK(context, q.dim() == 4 && k.dim() == 4 && k_cache.dim() == 4 && window >= 0, InvalidArgument, out);
  const int64_t count = q.size(1), heads = q.size(2), width = q.size(3), kv_heads = k.size(2), capacity = k_cache.size(2);
  const ScalarType stored = k_scale ? ScalarType::Char : ScalarType::Float;
  ET_KERNEL_CHECK_MSG(
      context,
      is_dense(q, ScalarType::Float, {1, count, heads, width}) &&
          is_dense(k, ScalarType::Float, {1, count, kv_heads, width}) &&
          is_dense(v, ScalarType::Float, {1, count, kv_heads, width}) &&
          is_dense(k_cache, stored, {1, kv_heads, capacity, width}) &&
          is_dense(v_cache, stored, {1, kv_heads, capacity, width}) && is_dense(input_pos, ScalarType::Long, {1}) &&
          (!k_scale ||
           (is_dense(*k_scale, ScalarType::Float, {1, kv_heads, capacity}) &&
            is_dense(*v_scale, ScalarType::Float, {1, kv_heads, capacity}))),
      InvalidArgument, out, "attention: shapes or types do not fit together");
  ET_KERNEL_CHECK_MSG(
      context, kv_heads > 0 && heads % kv_heads == 0 && width > 0 && width % 16 == 0 && width <= kMaxWidth, InvalidArgument, out,
      "attention: %d heads of %d over %d KV heads are not supported", int(heads), int(width), int(kv_heads));
  const int64_t position = input_pos.const_data_ptr<int64_t>()[0];
  ET_KERNEL_CHECK_MSG(
      context, position >= 0 && position <= capacity && count <= capacity - position, InvalidArgument, out,
      "attention: %lld tokens at position %lld are outside the KV cache of %lld", (long long)count, (long long)position,
      (long long)capacity);

  const SizesType sizes[3] = {1, SizesType(count), SizesType(heads * width)};
  ET_KERNEL_CHECK(
      context,
      out.scalar_type() == ScalarType::Float &&
          executorch::ET_RUNTIME_NAMESPACE::resize_tensor(out, {sizes, 3}) == Error::Ok,
      InvalidArgument, out);
  if (count == 0) return out;

  Attention a{};
  a.q = q.const_data_ptr<float>();
  a.out = out.mutable_data_ptr<float>();
  a.k_cache = k_cache.const_data_ptr();
  a.v_cache = v_cache.const_data_ptr();
  a.k_scale = k_scale ? k_scale->const_data_ptr<float>() : nullptr;
  a.v_scale = v_scale ? v_scale->const_data_ptr<float>() : nullptr;
  a.count = count, a.heads = heads, a.kv_heads = kv_heads, a.width = width, a.capacity = capacity;
  a.position = position, a.window = window, a.scale = static_cast<float>(scale);
  write_rows(
      a, k.const_data_ptr<float>(), v.const_data_ptr<float>(), const_cast<Tensor&>(k_cache), const_cast<Tensor&>(v_cache),
      const_cast<float*>(a.k_scale), const_cast<float*>(a.v_scale));
  ET_KERNEL_CHECK_MSG(context, attend_all(a), MemoryAllocationFailed, out, "attention: no memory for its scratch");
  return out;
}

// The caches are mutable in the schema, but EXECUTORCH_LIBRARY knows only one mutable tensor, the result: they come const.
Tensor& attention_out(
    KernelRuntimeContext& context, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& k_cache,
    const Tensor& v_cache, const Tensor& input_pos, int64_t window, double scale, int64_t block, int64_t /*local_blocks*/,
    int64_t /*stride*/, Tensor& out) {
  return attention(context, q, k, v, k_cache, v_cache, nullptr, nullptr, input_pos, window, scale, block, out);
}

Tensor& attention_int8_out(
    KernelRuntimeContext& context, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& k_cache,
    const Tensor& v_cache, const Tensor& k_scale, const Tensor& v_scale, const Tensor& input_pos, int64_t window,
    double scale, int64_t block, int64_t /*local_blocks*/, int64_t /*stride*/, Tensor& out) {
  return attention(context, q, k, v, k_cache, v_cache, &k_scale, &v_scale, input_pos, window, scale, block, out);
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
