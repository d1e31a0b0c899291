// 4-bit groups rounded with the best scale of several: what export/scales.py states in torch, with the same bits, in one pass
// over memory instead of one for each step. Sixteen groups go side by side, a lane each, so that every sum has columns' order.
#include "phi3mobile.h"
#include "processor.h"
#include "rows.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

// Into the clones, to be compiled for their instruction sets.
#define P3M_INLINE inline __attribute__((always_inline))

namespace {

constexpr int kLanes = 16;
constexpr int kBlock = 32;             // columns summed one after the other; then block after block
constexpr float kSmallest = 0x1p-17f;  // export/scales.py's SMALLEST_SCALE
constexpr float kInteger = 0x1.8p23f;  // added and taken away again: the nearest integer, ties to even
constexpr int64_t kGrain = 1 << 16;    // values a thread takes at once

struct Lanes {
  float value[kLanes];
};

struct Task {
  const float* weight;
  const float* importance;  // of columns, or null
  const float* divisors;
  int64_t width;
  int group, count;
  bool either_sign;
  uint16_t* scales;
  uint8_t* codes;  // or null
};

P3M_INLINE float clamped(float x, float low, float high) { return x < low ? low : (x > high ? high : x); }

P3M_INLINE float code_of(float x) { return (clamped(x, -8.0f, 7.0f) + kInteger) - kInteger; }

P3M_INLINE uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

P3M_INLINE float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// As torch rounds to bfloat16, for what is not NaN: a float's upper half.
P3M_INLINE uint32_t to_bfloat16(float x) {
  const uint32_t bits = bits_of(x);
  return (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000u;
}

// Columns of kLanes groups from `first`, lanes innermost; of missing groups zeros.
P3M_INLINE void gathered(const Task& task, int64_t first, int lanes, Lanes* columns, Lanes* importance) {
  const int64_t groups = task.width / task.group;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (lane >= lanes) {
      for (int i = 0; i < task.group; ++i) columns[i].value[lane] = 0;
      continue;
    }
    const float* from = task.weight + (first + lane) * task.group;
    for (int i = 0; i < task.group; ++i) columns[i].value[lane] = from[i];
    if (!importance) continue;
    from = task.importance + (first + lane) % groups * task.group;
    for (int i = 0; i < task.group; ++i) importance[i].value[lane] = from[i];
  }
}

// -1 where a group's extreme is positive, and such groups turned round; else 1.
P3M_INLINE void signs(const Task& task, Lanes* columns, Lanes& sign) {
  for (int lane = 0; lane < kLanes; ++lane) sign.value[lane] = 1.0f;
  if (!task.either_sign) return;
  Lanes low{}, high{};
  for (int i = 0; i < task.group; ++i) {
    for (int lane = 0; lane < kLanes; ++lane) {
      low.value[lane] = std::min(low.value[lane], columns[i].value[lane]);
      high.value[lane] = std::max(high.value[lane], columns[i].value[lane]);
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) sign.value[lane] = high.value[lane] > -low.value[lane] ? -1.0f : 1.0f;
  for (int i = 0; i < task.group; ++i) {
    for (int lane = 0; lane < kLanes; ++lane) columns[i].value[lane] *= sign.value[lane];
  }
}

// <codes, weight> and <codes, codes>, by importance where there is one, of the codes that the reciprocals of scales give.
template <bool kWeighted>
P3M_INLINE void sums(
    const Lanes* columns, const Lanes* importance, int group, const Lanes& reciprocal, Lanes& dot, Lanes& norm) {
  dot = norm = Lanes{};
  for (int start = 0; start < group; start += kBlock) {
    Lanes block_dot{}, block_norm{};
    const int end = std::min(group, start + kBlock);
    for (int i = start; i < end; ++i) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const float weight = columns[i].value[lane], code = code_of(weight * reciprocal.value[lane]);
        const float by = kWeighted ? importance[i].value[lane] : 1.0f;
        block_dot.value[lane] += kWeighted ? code * (weight * by) : code * weight;
        block_norm.value[lane] += kWeighted ? code * code * by : code * code;
      }
    }
    for (int lane = 0; lane < kLanes; ++lane) dot.value[lane] += block_dot.value[lane];
    for (int lane = 0; lane < kLanes; ++lane) norm.value[lane] += block_norm.value[lane];
  }
}

P3M_INLINE void write_codes(const Task& task, const Lanes* columns, const Lanes& reciprocal, int64_t first, int lanes) {
  for (int i = 0; i < task.group; i += 2) {
    uint8_t both[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      const int low = int(code_of(columns[i].value[lane] * reciprocal.value[lane])) + 8;
      const int high = int(code_of(columns[i + 1].value[lane] * reciprocal.value[lane])) + 8;
      both[lane] = uint8_t(low | high << 4);
    }
    for (int lane = 0; lane < lanes; ++lane) task.codes[((first + lane) * task.group + i) / 2] = both[lane];
  }
}

template <bool kWeighted>
P3M_INLINE bool rounded(const Task& task, int64_t first, int lanes, Lanes* columns, Lanes* importance) {
  gathered(task, first, lanes, columns, kWeighted ? importance : nullptr);
  uint32_t extreme[kLanes] = {};  // as bits: NaN is larger than infinity, which is larger than any number
  for (int i = 0; i < task.group; ++i) {
    for (int lane = 0; lane < kLanes; ++lane) {
      extreme[lane] = std::max(extreme[lane], bits_of(columns[i].value[lane]) & 0x7FFFFFFFu);
    }
  }
  if (*std::max_element(extreme, extreme + kLanes) >= 0x7F800000u) return false;
  Lanes sign, best, chosen;
  signs(task, columns, sign);
  for (int lane = 0; lane < kLanes; ++lane) best.value[lane] = float_of(0x7F800000u), chosen.value[lane] = 1.0f;
  for (int number = 0; number < task.count; ++number) {
    Lanes start, reciprocal, dot, norm;
    for (int lane = 0; lane < kLanes; ++lane) {
      start.value[lane] = std::max(float_of(extreme[lane]) / task.divisors[number], kSmallest);
      reciprocal.value[lane] = 1.0f / start.value[lane];
    }
    sums<kWeighted>(columns, importance, task.group, reciprocal, dot, norm);
    for (int lane = 0; lane < kLanes; ++lane) {
      const float n = norm.value[lane], d = dot.value[lane];
      const float scale = float_of(to_bfloat16(std::max(n > 0 ? d / n : start.value[lane], kSmallest)));
      const float error = scale * (scale * n - 2 * d);  // but for what is the same for all
      const bool better = error < best.value[lane];
      best.value[lane] = better ? error : best.value[lane];
      chosen.value[lane] = better ? scale : chosen.value[lane];
    }
  }
  for (int lane = 0; lane < lanes; ++lane) {
    task.scales[first + lane] = uint16_t(bits_of(chosen.value[lane] * sign.value[lane]) >> 16);
  }
  if (!task.codes) return true;
  for (int lane = 0; lane < kLanes; ++lane) chosen.value[lane] = 1.0f / chosen.value[lane];
  write_codes(task, columns, chosen, first, lanes);
  return true;
}

P3M_CLONES bool rounded_all(const Task& task, int64_t first, int64_t end, Lanes* columns, Lanes* importance) {
  for (; first < end; first += kLanes) {
    const int lanes = int(std::min<int64_t>(kLanes, end - first));
    const bool finite = task.importance ? rounded<true>(task, first, lanes, columns, importance)
                                        : rounded<false>(task, first, lanes, columns, importance);
    if (!finite) return false;
  }
  return true;
}

}  // namespace

int p3m_round_groups(const float* weight, const float* importance, int64_t rows, int64_t width, int group, int either_sign,
    const float* divisors, int count, uint16_t* scales, uint8_t* codes) {
  if (rows < 0 || width < 1 || group < 2 || group % 2 || width % group || count < 1) return -1;
  const Task task{weight, importance, divisors, width, group, count, either_sign != 0, scales, codes};
  const int64_t groups = rows * (width / group), grain = std::max<int64_t>(kLanes, kGrain / group);
  std::atomic<bool> finite{true};
  phi3mobile::share((groups + grain - 1) / grain, 1, [&](int64_t from, int64_t to) {
    std::vector<Lanes> columns(size_t(group) * (importance ? 2 : 1));
    if (!rounded_all(task, from * grain, std::min(groups, to * grain), columns.data(), columns.data() + group)) finite = false;
  });
  return finite ? 0 : -2;
}
