// Rows of floats [count, width] between the products: rounded for them, normalised, activated. What becomes of a row does not
// depend on the others.
#pragma once

#include "tiles.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include <executorch/runtime/kernel/thread_parallel_interface.h>

namespace phi3mobile {

constexpr int64_t kWorthThreads = 1 << 14;  // elements of an elementwise loop below which threads save nothing
constexpr int64_t kWorthWaking = 1 << 18;   // multiply-adds of a product below which threads save nothing

// work(first, end) over 0 ... count, shared among the threads, at least `grain` at a time.
template <class Work>
void share(int64_t count, int64_t grain, const Work& work) {
  if (count > grain) {
    executorch::extension::parallel_for(0, count, grain, work);
  } else if (count > 0) {
    work(0, count);
  }
}

// The same in many pieces that threads take as they come free, smaller towards the end: a phone's cores are not alike, and a
// computer's have other work. Up to `worth` items are not shared at all, and an eighth of them is the smallest piece.
template <class Work>
void share_in_turns(int64_t count, int64_t worth, const Work& work) {
  const int64_t threads = executorch::extension::get_thread_count();
  if (count <= worth || threads < 2) {
    if (count > 0) work(0, count);
    return;
  }
  std::atomic<int64_t> next{0};
  share(threads, 1, [&](int64_t, int64_t) {
    for (int64_t first = next; first < count;) {
      const int64_t end = std::min(count, first + std::max(1 + worth / 8, (count - first) / (2 * threads)));
      if (!next.compare_exchange_weak(first, end)) continue;
      work(first, end);
      first = next;
    }
  });
}

// Rows as int8 codes.
struct CodedRows {
  std::vector<CodedRow> rows;
  std::vector<int8_t> codes;
  std::vector<int32_t> sums;
  std::vector<float> scales, values;
  int64_t width = 0;

  void size(int64_t count, int64_t row_width);
  void code(const float* x, int64_t row);  // x: all rows
  void code_all(const float* x, int64_t count, int64_t row_width);
};

// silu(gate) * up.
void swiglu(const float* gate, const float* up, int64_t count, float* out);

// models.modules.gegelu of finite values: gate at most limit, up within +-limit.
void gegelu(const float* gate, const float* up, int64_t count, float limit, float slope, float* out);

// x / rms(x) * weight.
void rms_norm(const float* x, const float* weight, float eps, int64_t width, float* out);

// (x - mean) / deviation * weight + bias.
void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t width, float* out);

// The sum of products, in one order of adding whatever the processor.
float dot(const float* x, const float* y, int64_t count);

}  // namespace phi3mobile
