#include "session/sampling.h"

#include "base/error.h"
#include "base/json.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

namespace phi3mobile {

namespace {

// numpy's sum of contiguous float64: pairwise, eight accumulators in blocks of 128.
double pairwise_sum(const double* values, size_t count) {
  if (count < 8) {
    double sum = -0.0;
    for (size_t i = 0; i < count; ++i) sum += values[i];
    return sum;
  }
  if (count > 128) {
    size_t half = count / 2;
    half -= half % 8;
    return pairwise_sum(values, half) + pairwise_sum(values + half, count - half);
  }
  double r[8];
  std::copy(values, values + 8, r);
  size_t i = 8;
  for (; i < count - count % 8; i += 8) {
    for (size_t j = 0; j < 8; ++j) r[j] += values[i + j];
  }
  double sum = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
  for (; i < count; ++i) sum += values[i];
  return sum;
}

double sum_of(const std::vector<double>& values) { return pairwise_sum(values.data(), values.size()) + 0.0; }

void require(const char* name, const Json& value, bool ok, const char* allowed) {
  if (!ok) throw InputError(std::string("sampling: ") + name + " is " + value.dump() + "; it must be " + allowed);
}

}  // namespace

void Sampling::check() const {
  require("temperature", temperature, temperature >= 0, "0 or more");
  require("top_k", top_k, top_k >= 0, "an integer, 0 (off) or more");
  require("top_p", top_p, top_p > 0 && top_p <= 1, "above 0, at most 1 (off)");
  require("min_p", min_p, min_p >= 0 && min_p <= 1, "from 0 (off) to 1");
  require("repetition_penalty", repetition_penalty, repetition_penalty >= 0.01 && repetition_penalty <= 100,
      "from 0.01 to 100, 1 is off");
  require("seed", seed.value_or(0), seed.value_or(0) >= 0, "an integer, 0 or more, or None");
}

int64_t Sampler::next(const float* logits, const std::vector<int64_t>& previous) {
  bool usable = true;
  int64_t best = 0;
  for (int64_t i = 0; i < vocab_; ++i) {
    usable &= !(std::isnan(logits[i]) || logits[i] == std::numeric_limits<float>::infinity());
    if (logits[i] > logits[best]) best = i;
  }
  if (!usable || !std::isfinite(logits[best])) throw std::runtime_error("the model returned unusable logits");
  const bool penalty = sampling_.repetition_penalty != 1 && !previous.empty();
  if (sampling_.temperature == 0 && !penalty) return best;

  scores_.assign(logits, logits + vocab_);
  if (penalty) penalize(previous);
  if (sampling_.temperature == 0) return std::max_element(scores_.begin(), scores_.end()) - scores_.begin();
  filter();
  double total = 0;
  for (double& value : scores_) value = total += value;
  // Never on a token of probability 0; the total is not exactly 1, so the draw is scaled to it.
  const auto drawn = std::upper_bound(scores_.begin(), scores_.end(), random_.next() * total);
  const auto last = std::lower_bound(scores_.begin(), scores_.end(), total);
  return std::min(drawn, last) - scores_.begin();
}

void Sampler::penalize(const std::vector<int64_t>& previous) {
  seen_.assign(size_t(vocab_), 0);
  for (const int64_t token : previous) {
    if (token < 0 || token >= vocab_ || seen_[size_t(token)]) continue;
    seen_[size_t(token)] = 1;
    double& score = scores_[size_t(token)];
    score = score < 0 ? score * sampling_.repetition_penalty : score / sampling_.repetition_penalty;
  }
}

// Scores become probabilities.
void Sampler::filter() {
  const double highest = *std::max_element(scores_.begin(), scores_.end());
  for (double& score : scores_) score = (score - highest) / sampling_.temperature;
  if (sampling_.top_k > 0 && sampling_.top_k < vocab_) {
    scratch_ = scores_;
    const auto least = scratch_.end() - sampling_.top_k;
    std::nth_element(scratch_.begin(), least, scratch_.end());
    for (double& score : scores_) {
      if (score < *least) score = -std::numeric_limits<double>::infinity();
    }
  }
  for (double& score : scores_) score = std::exp(score);
  const double total = sum_of(scores_);
  for (double& score : scores_) score /= total;
  if (sampling_.top_p < 1) keep_nucleus();
  if (sampling_.min_p > 0) {
    const double least = sampling_.min_p * *std::max_element(scores_.begin(), scores_.end());
    for (double& probability : scores_) {
      if (probability < least) probability = 0;
    }
  }
  const double kept = sum_of(scores_);
  for (double& probability : scores_) probability /= kept;
}

// Zeroes the least probable tokens that have at most 1 - top_p together; of equals, higher ids first.
void Sampler::keep_nucleus() {
  const double cut = 1 - sampling_.top_p, small = cut / double(vocab_);
  const double highest = *std::max_element(scores_.begin(), scores_.end());
  scratch_.clear();
  order_.clear();
  for (int64_t i = vocab_ - 1; i >= 0; --i) {
    const double probability = scores_[size_t(i)];
    if (!(probability <= small && probability < highest)) order_.push_back(i);
  }
  for (double& probability : scores_) {
    if (probability <= small && probability < highest) {
      scratch_.push_back(probability);
      probability = 0;
    }
  }
  std::stable_sort(order_.begin(), order_.end(), [&](int64_t a, int64_t b) { return scores_[size_t(a)] < scores_[size_t(b)]; });
  const double gone = sum_of(scratch_);
  double total = 0;
  for (size_t i = 0; i + 1 < order_.size(); ++i) {
    total += scores_[size_t(order_[i])];
    if (!(gone + total <= cut)) break;
    scores_[size_t(order_[i])] = 0;
  }
}

}  // namespace phi3mobile
