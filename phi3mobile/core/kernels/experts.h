// What computes a mixture of experts: products by the tiles of an ExpertFile.
#pragma once

#include "expert_file.h"
#include "rows.h"

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

  // x [count, hidden] through the mixture of a layer, into out [count, hidden]. Empty, or one line. The result of a row does
  // not depend on the others: each is rounded alone, and the experts' results are added in the experts' order.
  std::string run(int layer, const Routing& routing, const float* x, const float* router, int64_t count, float* out);

  const ExpertFile& file() const { return *file_; }

  std::string error;  // what the last failed run said

 private:
  Experts() = default;
  std::string compute(const std::vector<int>& experts);
  template <class Work>
  void over_tiles(const std::vector<int>& experts, int64_t tiles, int64_t multiplied, const Work& work);
  std::string gate_and_up(const std::vector<int>& experts);
  std::string down(const std::vector<int>& experts);

  std::unique_ptr<ExpertFile> file_;
  int64_t used_ = 0;
  std::vector<std::vector<int64_t>> slots_;  // token * used + place among its experts, by expert
  std::vector<int> chosen_;
  std::vector<float> logits_, chosen_weights_;
  std::vector<float> active_, results_;  // [slots, inner], [slots, hidden]
  CodedRows coded_, coded_active_;       // of the tokens, of active_
};

// Whose file the operators of the forward now running on this thread read; null outside.
extern thread_local Experts* running_experts;

}  // namespace phi3mobile
