// phi3mobile::sparse_moe: checks, then Experts::run with the file of the model that runs on this thread.
// Shapes and meaning: phi3mobile/models/ops_experts.py.
#include "experts.h"

#include <algorithm>

#include <executorch/extension/kernel_util/make_boxed_from_unboxed_functor.h>
#include <executorch/runtime/kernel/kernel_includes.h>

namespace phi3mobile {

thread_local Experts* running_experts = nullptr;

namespace {

using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using executorch::aten::Tensor;
using executorch::runtime::Error;
using executorch::runtime::KernelRuntimeContext;

constexpr int64_t kMostUsed = 64;

bool is_dense(const Tensor& x) {
  for (int i = 0; i < x.dim(); ++i) {
    if (x.dim_order()[i] != i) return false;
  }
  return x.dim() == 2 && x.scalar_type() == ScalarType::Float;
}

Tensor& sparse_moe_out(KernelRuntimeContext& context, const Tensor& x, const Tensor& router, int64_t layer, int64_t used,
    double jitter, Tensor& out) {
  Experts* experts = running_experts;
  ET_KERNEL_CHECK_MSG(
      context, experts != nullptr, InvalidState, out, "experts: this model was opened without its file of experts");
  const auto& h = experts->file().header();
  const bool fits = is_dense(x) && is_dense(router) && x.size(1) == int64_t(h.hidden) && router.size(1) == int64_t(h.hidden) &&
                    router.size(0) == int64_t(h.experts) && used >= 1 && used <= std::min<int64_t>(router.size(0), kMostUsed);
  ET_KERNEL_CHECK_MSG(context, fits, InvalidArgument, out,
      "experts: the program's shapes do not fit a file of %u experts of width %u", h.experts, h.hidden);
  const SizesType sizes[2] = {SizesType(x.size(0)), SizesType(x.size(1))};
  ET_KERNEL_CHECK_MSG(context,
      out.scalar_type() == ScalarType::Float && executorch::ET_RUNTIME_NAMESPACE::resize_tensor(out, {sizes, 2}) == Error::Ok,
      InvalidArgument, out, "experts: the result must be float32 and hold [T, hidden]");
  if (x.size(0) == 0) return out;
  const Routing routing{int(h.experts), int(used), float(jitter)};
  const std::string wrong = experts->run(
      int(layer), routing, x.const_data_ptr<float>(), router.const_data_ptr<float>(), x.size(0), out.mutable_data_ptr<float>());
  if (!wrong.empty()) {
    experts->error = wrong;  // the log would cut it
    ET_LOG(Error, "experts: %s", wrong.c_str());
    context.fail(Error::InvalidExternalData);
  }
  return out;
}

constexpr char kName[] = "phi3mobile::sparse_moe.out";
constexpr size_t kArguments = 5;

const executorch::runtime::Kernel kernels[] = {executorch::runtime::Kernel(
    kName, [](KernelRuntimeContext& context, executorch::runtime::Span<executorch::runtime::EValue*> stack) {
      if (stack.size() <= kArguments || !stack[kArguments]->isTensor()) {
        ET_LOG(Error, "experts: the program is from another version of phi3mobile: export it again");
        context.fail(Error::InvalidProgram);
        return;
      }
      executorch::extension::WrapUnboxedIntoFunctor<decltype(EXECUTORCH_FN(sparse_moe_out, kName))>::call(context, stack);
    })};
[[maybe_unused]] const auto registered = executorch::runtime::register_kernels({kernels, 1});

}  // namespace
}  // namespace phi3mobile
