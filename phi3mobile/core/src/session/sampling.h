// Next-token sampling, as phi3mobile/session/sampling.py: the same filters in the same order on the same float64 numbers.
#pragma once

#include "session/random.h"

#include <cstdint>
#include <optional>
#include <vector>

namespace phi3mobile {

// In order: repetition penalty, temperature, top-k, top-p, min-p.
struct Sampling {
  double temperature = 0;  // 0: greedy
  int64_t top_k = 0;       // 0: off
  double top_p = 1;        // 1: off
  double min_p = 0;        // 0: off; else relative to the most probable token
  double repetition_penalty = 1;
  std::optional<int64_t> seed;
  bool penalize_prompt = true;  // false: the penalty counts the answer alone

  // InputError for a value out of range.
  void check() const;
};

// The next token from logits [vocab]: greedy at temperature 0 (of equals the lowest id), else drawn with one number.
// previous: the ids that the penalty counts. std::runtime_error for NaN or infinite logits.
class Sampler {
 public:
  Sampler(const Sampling& sampling, int64_t vocab) : sampling_(sampling), random_(sampling.seed), vocab_(vocab) {}
  int64_t next(const float* logits, const std::vector<int64_t>& previous);

 private:
  void penalize(const std::vector<int64_t>& previous);
  void filter();
  void keep_nucleus();

  Sampling sampling_;
  Random random_;
  int64_t vocab_;
  std::vector<double> scores_, scratch_;
  std::vector<int64_t> order_;
  std::vector<uint8_t> seen_;
};

}  // namespace phi3mobile
