#include "experts.h"
#include "processor.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace phi3mobile {
namespace {

constexpr int64_t kRows = 16;  // rows that go through a tile of gate and up together

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
  return made;
}

// work(place among experts, tile, slots, count) for every tile of each expert, shared among the threads, at most kRows slots at
// a time. multiplied: multiply-adds of a tile with one row.
template <class Work>
void Experts::over_tiles(const std::vector<int>& experts, int64_t tiles, int64_t multiplied, const Work& work) {
  share_in_turns(int64_t(experts.size()) * tiles, kWorthWaking / multiplied, [&](int64_t first, int64_t end) {
    for (int64_t item = first; item < end; ++item) {
      const auto& slots = slots_[experts[item / tiles]];
      for (int64_t at = 0; at < int64_t(slots.size()); at += kRows) {
        work(item / tiles, item % tiles, slots.data() + at, std::min(kRows, int64_t(slots.size()) - at));
      }
    }
  });
}

// [gate and up] of each expert times its rows, and silu(gate) * up -> active_.
std::string Experts::gate_and_up(const std::vector<int>& experts) {
  const ExpertHeader& h = file_->header();
  const TileForm form{h.hidden, h.group13};
  const int64_t inner = h.inner, tiles = form.tiles(inner), step = form.bytes();
  std::vector<const uint8_t*> weights;
  for (const int expert : experts) {
    weights.push_back(static_cast<const uint8_t*>(file_->w13(expert)));
    if (!weights.back()) return file_->error();
  }
  over_tiles(experts, tiles, 2 * kTile * h.hidden, [&](int64_t expert, int64_t tile, const int64_t* slots, int64_t count) {
    CodedRow rows[kRows];
    float gate[kRows * kTile], up[kRows * kTile];
    const uint8_t* at = weights[expert] + tile * step;
    const int64_t column = tile * kTile, columns = std::min(kTile, inner - column);
    for (int64_t i = 0; i < count; ++i) rows[i] = coded_.rows[slots[i] / used_];
    multiply_tile(at, form, rows, count, gate);
    multiply_tile(at + tiles * step, form, rows, count, up);
    swiglu(gate, up, count * kTile, gate);
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(active_.data() + slots[i] * inner + column, gate + i * kTile, size_t(columns) * 4);
    }
  });
  return "";
}

// down of each expert times its rows -> results_.
std::string Experts::down(const std::vector<int>& experts) {
  const ExpertHeader& h = file_->header();
  const TileForm form{h.inner, h.group2};
  const int64_t hidden = h.hidden, tiles = form.tiles(hidden), step = form.bytes();
  std::vector<const uint8_t*> weights;
  for (const int expert : experts) {
    weights.push_back(static_cast<const uint8_t*>(file_->w2(expert)));
    if (!weights.back()) return file_->error();
  }
  over_tiles(experts, tiles, kTile * h.inner, [&](int64_t expert, int64_t tile, const int64_t* slots, int64_t count) {
    CodedRow rows[kRows];
    float out[kRows * kTile];
    const int64_t column = tile * kTile, columns = std::min(kTile, hidden - column);
    for (int64_t i = 0; i < count; ++i) rows[i] = coded_active_.rows[slots[i]];
    multiply_tile(weights[expert] + tile * step, form, rows, count, out);
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(results_.data() + slots[i] * hidden + column, out + i * kTile, size_t(columns) * 4);
    }
  });
  return "";
}

std::string Experts::compute(const std::vector<int>& experts) {
  const std::string wrong = gate_and_up(experts);
  if (!wrong.empty()) return wrong;
  std::vector<int64_t> all;
  for (const int expert : experts) all.insert(all.end(), slots_[expert].begin(), slots_[expert].end());
  share(int64_t(all.size()), 1 + kWorthThreads / file_->header().inner, [&](int64_t first, int64_t end) {
    for (int64_t i = first; i < end; ++i) coded_active_.code(active_.data(), all[size_t(i)]);
  });
  return down(experts);
}

std::string Experts::run(int layer, const Routing& routing, const float* x, const float* router, int64_t count, float* out) {
  const ExpertHeader& h = file_->header();
  const int64_t hidden = h.hidden, used = routing.used;
  if (layer < 0 || layer >= int(h.layers) || routing.experts != int(h.experts) || used < 1 || used > routing.experts) {
    return "a program for other experts than those of this file";
  }
  used_ = used;
  logits_.resize(size_t(count * h.experts)), chosen_.resize(size_t(count * used)), chosen_weights_.resize(size_t(count * used));
  active_.resize(size_t(count * used * h.inner)), results_.resize(size_t(count * used * hidden));
  coded_active_.size(count * used, h.inner);
  router_logits(x, router, count, hidden, h.experts, logits_.data());
  slots_.assign(h.experts, {});
  for (int64_t t = 0; t < count; ++t) {
    if (!route(routing, &logits_[t * h.experts], &chosen_[t * used], &chosen_weights_[t * used])) {
      return "the router of layer " + std::to_string(layer) + " gives logits that are not finite";
    }
    for (int64_t i = 0; i < used; ++i) slots_[chosen_[t * used + i]].push_back(t * used + i);
  }
  std::vector<int> needed;
  for (int e = 0; e < int(h.experts); ++e) {
    if (!slots_[e].empty()) needed.push_back(e);
  }
  file_->begin(layer, needed);
  coded_.code_all(x, count, hidden);
  for (std::vector<int> some = file_->next(); !some.empty(); some = file_->next()) {
    const std::string wrong = compute(some);
    if (!wrong.empty()) return wrong;
    for (const int expert : some) file_->done(expert);
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
        add_scaled(results_.data() + (t * used + slot) * hidden, chosen_weights_[t * used + slot], hidden, to);
      }
    }
  });
  return "";
}

}  // namespace phi3mobile
