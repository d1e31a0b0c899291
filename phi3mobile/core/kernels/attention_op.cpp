// phi3mobile::blocksparse_attention[_int8, _int4] and their evicting forms: checks what the runtime gives, and registers them.
// Shapes and meaning: phi3mobile/models/ops.py, the eager reference.
#include "attention_work.h"

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <numeric>

#include <executorch/extension/kernel_util/make_boxed_from_unboxed_functor.h>
#include <executorch/runtime/kernel/kernel_includes.h>

namespace phi3mobile {
namespace {

using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using executorch::aten::Tensor;
using executorch::runtime::Error;
using executorch::runtime::KernelRuntimeContext;

constexpr int64_t kMaxHeads = 1 << 16;     // keeps sizes far from overflow
constexpr int64_t kMostPattern = 1 << 20;  // block, local_blocks, stride, head_step; likewise

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
  ET_KERNEL_CHECK_MSG(context, attend_tokens(a), MemoryAllocationFailed, out, "attention: no memory for its scratch");
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

}  // namespace phi3mobile
