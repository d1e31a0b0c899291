#include "experts.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include <executorch/runtime/kernel/thread_parallel_interface.h>

namespace phi3mobile {
namespace {

constexpr int64_t kSpare = 16;              // values past the end that XNNPACK may read
constexpr int64_t kWorthThreads = 1 << 14;  // elements of an elementwise loop below which threads save nothing
constexpr int64_t kWorthWaking = 1 << 18;   // multiply-adds of a product below which threads save nothing
constexpr int64_t kLanes = 16;

template <class Work>
void share(int64_t count, int64_t grain, const Work& work) {
  if (count > grain) {
    executorch::extension::parallel_for(0, count, grain, work);
  } else if (count > 0) {
    work(0, count);
  }
}

#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__)
#define P3M_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define P3M_CLONES
#endif

// silu(gate) * up. exp is a polynomial on a reduced argument, so that the loop has no call and no branch; this file is compiled
// without contraction, so a value does not depend on its place.
P3M_CLONES void swiglu(const float* gate, const float* up, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    const float x = std::min(std::max(-gate[i], -87.0f), 88.0f);
    const int32_t n = int32_t(x * 1.44269504f + (x < 0 ? -0.5f : 0.5f));
    const float r = (x - float(n) * 0.693359375f) + float(n) * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const int32_t bits = (n + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    out[i] = gate[i] / (1.0f + p * power) * up[i];
  }
}

P3M_CLONES float dot(const float* x, const float* y, int64_t count) {
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += x[i + lane] * y[i + lane];
  }
  double total = 0;
  for (const float sum : sums) total += sum;
  for (; i < count; ++i) total += double(x[i]) * y[i];
  return float(total);
}

P3M_CLONES void add_scaled(const float* x, float weight, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] += weight * x[i];
}

}  // namespace

bool route(const Routing& routing, const float* logits, int* chosen, float* weights) {
  const int experts = routing.experts;
  for (int e = 0; e < experts; ++e) {
    if (!std::isfinite(logits[e])) return false;
  }
  const auto taken = [&](int e, int rounds) { return std::find(chosen, chosen + rounds, e) != chosen + rounds; };
  const auto best_of_rest = [&](int rounds) {
    int best = -1;
    for (int e = 0; e < experts; ++e) {
      if (!taken(e, rounds) && (best < 0 || logits[e] > logits[best])) best = e;
    }
    return best;
  };
  for (int i = 0; i < routing.used; ++i) {
    const int best = best_of_rest(i);
    const float most = logits[best];
    chosen[i] = best;
    if (routing.jitter < 0) {
      weights[i] = std::exp(most - logits[chosen[0]]);
      continue;
    }
    float sum = 0;
    for (int e = 0; e < experts; ++e) {
      const float by = std::max(std::fabs(logits[e]), most);
      const bool outside = (most - logits[e]) / by > 2 * routing.jitter;  // 0/0 compares false: inside
      if (!taken(e, i) && !outside) sum += std::exp(logits[e] - most);
    }
    weights[i] = 1 / sum;
  }
  if (routing.jitter < 0) {
    float sum = 0;
    for (int i = 0; i < routing.used; ++i) sum += weights[i];
    for (int i = 0; i < routing.used; ++i) weights[i] /= sum;
  }
  return true;
}

void router_logits(const float* x, const float* router, int64_t count, int64_t hidden, int64_t experts, float* logits) {
  share(count, 1 + kWorthThreads / (hidden * experts), [&](int64_t first, int64_t end) {
    for (int64_t t = first; t < end; ++t) {
      for (int64_t e = 0; e < experts; ++e) {
        logits[t * experts + e] = dot(x + t * hidden, router + e * hidden, hidden);
      }
    }
  });
}

std::unique_ptr<Experts> Experts::open(const std::string& path, uint64_t budget, int used, std::string* error) {
  std::unique_ptr<Experts> made(new Experts);
  made->file_ = ExpertFile::open(path, budget, used, error);
  if (!made->file_) return nullptr;
  const ExpertHeader& h = made->file_->header();
  auto& provider = made->provider_;
  provider.context = made.get();
  // The weights are packed already: every look-up finds them, and their address is that of the expert whose turn it is.
  provider.look_up = [](void*, const void*) -> size_t { return 0; };
  provider.reserve_space = [](void*, size_t) -> void* { return nullptr; };
  provider.look_up_or_insert = [](void*, const void*, void*, size_t) -> size_t { return 0; };
  provider.is_finalized = [](void* self) { return static_cast<Experts*>(self)->finalized_; };
  provider.offset_to_addr = [](void* self, size_t offset) -> void* {
    return const_cast<uint8_t*>(static_cast<const uint8_t*>(static_cast<Experts*>(self)->weights_)) + offset;
  };
  provider.delete_cache = [](void*) { return 0; };
  const float most = std::numeric_limits<float>::infinity();
  // Stand-ins of the right size: the scales are looked at, though the look-up succeeds.
  const std::vector<uint16_t> scales(size_t(h.inner) * h.hidden / 8, 0x3f80);
  const std::vector<uint8_t> codes(size_t(h.inner) * h.hidden);
  const size_t outputs[2] = {2 * size_t(h.inner), h.hidden}, inputs[2] = {h.hidden, h.inner}, groups[2] = {h.group13, h.group2};
  bool made_all = xnn_initialize(nullptr) == 0 && xnn_create_convert_nc_f32_qd8(0, &made->rounding_) == 0;
  for (int i = 0; i < 2 && made_all; ++i) {
    made_all = xnn_create_fully_connected_nc_qd8_f32_qb4w(inputs[i], outputs[i], inputs[i], outputs[i], groups[i], 8,
                   scales.data(), codes.data(), nullptr, -most, most, 0, &provider, &made->products_[i]) == 0;
  }
  if (!made_all) {
    *error = path + ": XNNPACK can't multiply by experts of this shape";
    return nullptr;
  }
  made->finalized_ = true;
  return made;
}

Experts::~Experts() {
  for (xnn_operator_t op : {products_[0], products_[1], rounding_}) {
    if (op) xnn_delete_operator(op);
  }
}

bool Experts::round_rows(const float* x, int64_t count, int64_t width, int8_t* codes, xnn_quantization_params* params) {
  pthreadpool* threads = count * width < kWorthThreads ? nullptr : executorch::extension::threadpool::get_pthreadpool();
  const size_t columns = size_t(width);
  return xnn_reshape_convert_nc_f32_qd8(rounding_, size_t(count), columns, columns, columns, threads) == 0 &&
         xnn_setup_convert_nc_f32_qd8(rounding_, x, codes, nullptr, params) == 0 && xnn_run_operator(rounding_, threads) == 0;
}

bool Experts::multiply(
    int which, const void* weights, const int8_t* codes, const xnn_quantization_params* params, int64_t rows, float* out) {
  weights_ = weights;
  const ExpertHeader& h = file_->header();
  const bool alone = rows * int64_t(h.hidden) * h.inner < kWorthWaking;
  pthreadpool* threads = alone ? nullptr : executorch::extension::threadpool::get_pthreadpool();
  size_t workspace = 0;
  return xnn_reshape_fully_connected_nc_qd8_f32_qb4w(products_[which], size_t(rows), &workspace, threads) == 0 &&
         workspace == 0 && xnn_setup_fully_connected_nc_qd8_f32_qb4w(products_[which], codes, out, nullptr, params) == 0 &&
         xnn_run_operator(products_[which], threads) == 0;
}

std::string Experts::compute(int expert, int64_t used) {
  const int64_t hidden = file_->header().hidden, inner = file_->header().inner;
  const auto& rows = rows_[expert];
  const int64_t count = int64_t(rows.size());
  own_codes_.resize(size_t(count * hidden + kSpare)), own_params_.resize(size_t(count + kSpare));
  hidden_.resize(size_t(count * std::max(2 * inner, hidden) + kSpare)), active_.resize(size_t(count * inner + kSpare));
  active_codes_.resize(size_t(count * inner + kSpare)), active_params_.resize(size_t(count + kSpare));
  for (int64_t i = 0; i < count; ++i) {
    const int64_t token = rows[i] / used;
    std::memcpy(own_codes_.data() + i * hidden, codes_.data() + token * hidden, size_t(hidden));
    own_params_[i] = params_[token];
  }
  // A tile of rows is computed whole: those past the last one write to its place, so they must round as it does.
  std::fill(own_params_.begin() + count, own_params_.end(), own_params_[count - 1]);
  const void* w13 = file_->w13(expert);
  if (!w13) return file_->error();
  if (!multiply(0, w13, own_codes_.data(), own_params_.data(), count, hidden_.data())) return "XNNPACK failed";
  share(count * inner, kWorthThreads, [&](int64_t first, int64_t end) {
    for (; first < end;) {
      const int64_t row = first / inner, column = first % inner, part = std::min(end - first, inner - column);
      const float* gate = hidden_.data() + row * 2 * inner + column;
      swiglu(gate, gate + inner, part, active_.data() + first);
      first += part;
    }
  });
  if (!round_rows(active_.data(), count, inner, active_codes_.data(), active_params_.data())) return "XNNPACK failed";
  const void* w2 = file_->w2(expert);
  if (!w2) return file_->error();
  float* out = hidden_.data();
  if (!multiply(1, w2, active_codes_.data(), active_params_.data(), count, out)) return "XNNPACK failed";
  for (int64_t i = 0; i < count; ++i) std::memcpy(results_.data() + rows[i] * hidden, out + i * hidden, size_t(hidden) * 4);
  return "";
}

std::string Experts::run(int layer, const Routing& routing, const float* x, const float* router, int64_t count, float* out) {
  const ExpertHeader& h = file_->header();
  const int64_t hidden = h.hidden, used = routing.used;
  if (layer < 0 || layer >= int(h.layers) || routing.experts != int(h.experts) || used < 1 || used > routing.experts) {
    return "a program for other experts than those of this file";
  }
  logits_.resize(size_t(count * h.experts)), chosen_.resize(size_t(count * used)), chosen_weights_.resize(size_t(count * used));
  router_logits(x, router, count, hidden, h.experts, logits_.data());
  rows_.assign(h.experts, {});
  for (int64_t t = 0; t < count; ++t) {
    if (!route(routing, &logits_[t * h.experts], &chosen_[t * used], &chosen_weights_[t * used])) {
      return "the router of layer " + std::to_string(layer) + " gives logits that are not finite";
    }
    for (int64_t i = 0; i < used; ++i) rows_[chosen_[t * used + i]].push_back(t * used + i);
  }
  std::vector<int> needed;
  for (int e = 0; e < int(h.experts); ++e) {
    if (!rows_[e].empty()) needed.push_back(e);
  }
  file_->begin(layer, needed);
  codes_.resize(size_t(count * hidden + kSpare)), params_.resize(size_t(count + kSpare));
  if (!round_rows(x, count, hidden, codes_.data(), params_.data())) return "XNNPACK failed";
  results_.resize(size_t(count * used * hidden));
  for (int expert = file_->next(); expert >= 0; expert = file_->next()) {
    const std::string wrong = compute(expert, used);
    if (!wrong.empty()) return wrong;
    file_->done(expert);
  }
  share(count, 1 + kWorthThreads / (hidden * used), [&](int64_t first, int64_t end) {
    for (int64_t t = first; t < end; ++t) {
      float* to = out + t * hidden;
      std::fill(to, to + hidden, 0.0f);
      int order[64];
      std::memcpy(order, &chosen_[t * used], size_t(used) * sizeof(int));
      std::sort(order, order + used);
      for (int64_t i = 0; i < used; ++i) {
        const int64_t slot = std::find(&chosen_[t * used], &chosen_[t * used] + used, order[i]) - &chosen_[t * used];
        const float weight = chosen_weights_[t * used + slot];
        const float* from = results_.data() + (t * used + slot) * hidden;
        add_scaled(from, weight, hidden, to);
      }
    }
  });
  return "";
}

}  // namespace phi3mobile
