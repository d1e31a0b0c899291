// What computes a mixture of experts: XNNPACK's operators over the parts of an ExpertFile.
#pragma once

#include "expert_file.h"
#include "xnnpack_operators.h"

#include <memory>
#include <string>
#include <vector>

namespace phi3mobile {

// How a token's experts are chosen: jitter >= 0 is SparseMixer's, less than 0 a softmax over the `used` best logits.
struct Routing {
  int experts, used;
  float jitter;
};

// Logits [experts] -> the used experts and their weights; false: a logit is not finite. As models/routing.py, in float32.
bool route(const Routing& routing, const float* logits, int* chosen, float* weights);

// Logits of x [count, hidden] by router [experts, hidden]: every sum in one order, whatever the count.
void router_logits(const float* x, const float* router, int64_t count, int64_t hidden, int64_t experts, float* logits);

class Experts {
 public:
  static std::unique_ptr<Experts> open(const std::string& path, uint64_t budget, int used, std::string* error);
  ~Experts();

  // x [count, hidden] through the mixture of a layer, into out [count, hidden]. Empty, or one line. The result of a row does
  // not depend on the others: each is rounded alone, and the experts' results are added in the experts' order.
  std::string run(int layer, const Routing& routing, const float* x, const float* router, int64_t count, float* out);

  const ExpertFile& file() const { return *file_; }

  std::string error;  // what the last failed run said

 private:
  Experts() = default;
  std::string compute(int expert, int64_t used);
  bool round_rows(const float* x, int64_t count, int64_t width, int8_t* codes, xnn_quantization_params* params);
  bool multiply(
      int which, const void* weights, const int8_t* codes, const xnn_quantization_params* params, int64_t rows, float* out);

  std::unique_ptr<ExpertFile> file_;
  xnn_weights_cache_provider provider_{};
  const void* weights_ = nullptr;  // of the operator that runs next
  bool finalized_ = false;
  xnn_operator_t products_[2] = {nullptr, nullptr}, rounding_ = nullptr;

  std::vector<std::vector<int64_t>> rows_;  // token * used + slot, by expert
  std::vector<float> logits_, chosen_weights_, hidden_, active_, results_;
  std::vector<int> chosen_;
  std::vector<int8_t> codes_, own_codes_, active_codes_;
  std::vector<xnn_quantization_params> params_, own_params_, active_params_;
};

// Whose file the operators of the forward now running on this thread read; null outside.
extern thread_local Experts* running_experts;

}  // namespace phi3mobile
