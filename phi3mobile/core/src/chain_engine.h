// An engine and a tower simple enough to be checked by hand: the stand-ins of core_check, as tests/core/scenarios.py has them.
#pragma once

#include "session/engine.h"
#include "session/tower.h"
#include "session/vision.h"

#include <cstdint>
#include <vector>

namespace phi3mobile {

// The engine of tests/core/scenarios.py.
class ChainEngine : public Engine {
 public:
  explicit ChainEngine(const EngineInfo& info) : Engine(info), states_(size_t(info.max_context)) {}

  const float* forward_rows(const float* rows, int64_t count, int64_t position, bool is_long) override {
    std::vector<int64_t> tokens(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) tokens[size_t(i)] = int64_t(rows[i * info.hidden] * 1e6f + 1e8f);
    return forward(tokens.data(), count, position, is_long);
  }

  const float* forward(const int64_t* tokens, int64_t count, int64_t position, bool is_long) override {
    logits_.assign(size_t(count * info.vocab), 0);
    const bool all_long = info.original_context && (is_long || position + count > *info.original_context);
    for (int64_t row = 0; row < count; ++row) {
      const int64_t at = position + row;
      const uint64_t before = at ? states_.at(size_t(at - 1)) : 0, token = uint64_t(tokens[row]);
      const uint64_t fed = token * 0x9E3779B97F4A7C15 + uint64_t(at) * 0xC2B2AE3D27D4EB4F + all_long * 0x165667B19E3779F9;
      const uint64_t state = states_.at(size_t(at)) = mixed(before ^ fed);
      float* to = logits_.data() + row * info.vocab;
      for (int64_t v = 0; v < info.vocab; ++v)
        to[v] = float(mixed(state + uint64_t(v) * 0x9E3779B97F4A7C15) >> 40) / float(1 << 20);
      to[(5 * token) % uint64_t(info.vocab)] += 8;
    }
    return logits_.data();
  }

 private:
  static uint64_t mixed(uint64_t value) {
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9;
    value = (value ^ value >> 27) * 0x94D049BB133111EB;
    return value ^ value >> 31;
  }

  std::vector<uint64_t> states_;
  std::vector<float> logits_;
};

// Patches are pixels, rows are sums.
class ChainTower : public Tower {
 public:
  using Tower::Tower;
  void encode(const float* view, float* patches) override {
    for (int64_t i = 0; i < kPatches * info.width; ++i) patches[i] = view[i * 7 % kViewValues];
  }
  void project(const float* merged, int64_t count, float* embedded) override {
    for (int64_t i = 0; i < count * info.hidden; ++i) embedded[i] = merged[i % (4 * info.width * count)];
  }
};

}  // namespace phi3mobile
