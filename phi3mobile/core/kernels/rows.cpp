// Compiled without contraction: a value does not depend on its place.
#include "rows.h"
#include "processor.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace phi3mobile {
namespace {

constexpr int64_t kLanes = 16;

// exp(x), x clamped to where float holds it: a polynomial on a reduced argument, so that a loop has no call and no branch.
inline float exponential(float x) {
  x = std::min(std::max(x, -87.0f), 88.0f);
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
  return p * power;
}

// The sum of value(i), in lanes that any vector holds whole.
template <class Value>
inline double summed(int64_t count, const Value& value) {
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += value(i + lane);
  }
  double total = 0;
  for (const float sum : sums) total += sum;
  for (; i < count; ++i) total += value(i);
  return total;
}

}  // namespace

void CodedRows::size(int64_t count, int64_t row_width) {
  width = row_width;
  const size_t blocks = size_t(count * (width / kCodes));
  rows.resize(size_t(count)), codes.resize(size_t(count * width)), sums.resize(blocks);
  scales.resize(blocks), values.resize(blocks);
}

void CodedRows::code(const float* x, int64_t row) {
  const int64_t at = row * width, block = row * (width / kCodes);
  code_row(x + at, width, codes.data() + at, sums.data() + block, scales.data() + block, values.data() + block);
  rows[size_t(row)] = {codes.data() + at, sums.data() + block, scales.data() + block, values.data() + block};
}

void CodedRows::code_all(const float* x, int64_t count, int64_t row_width) {
  size(count, row_width);
  share(count, 1 + kWorthThreads / width, [&](int64_t first, int64_t end) {
    for (int64_t row = first; row < end; ++row) code(x, row);
  });
}

P3M_CLONES void swiglu(const float* gate, const float* up, int64_t count, float* out) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) out[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
}

P3M_CLONES void gegelu(const float* gate, const float* up, int64_t count, float limit, float slope, float* out) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const float g = std::min(gate[i], limit), u = std::min(std::max(up[i], -limit), limit);
    const float active = g / (1.0f + exponential(-slope * g));
    out[i] = active * u + active;
  }
}

P3M_CLONES float dot(const float* x, const float* y, int64_t count) {
  return float(summed(count, [&](int64_t i) { return x[i] * y[i]; }));
}

P3M_CLONES void rms_norm(const float* x, const float* weight, float eps, int64_t width, float* out) {
  const double squares = summed(width, [&](int64_t i) { return x[i] * x[i]; });
  const float scale = float(1 / std::sqrt(squares / double(width) + double(eps)));
  for (int64_t i = 0; i < width; ++i) out[i] = x[i] * scale * weight[i];
}

P3M_CLONES void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t width, float* out) {
  const float mean = float(summed(width, [&](int64_t i) { return x[i]; }) / double(width));
  const double squares = summed(width, [&](int64_t i) { return (x[i] - mean) * (x[i] - mean); });
  const float scale = float(1 / std::sqrt(squares / double(width) + double(eps)));
  for (int64_t i = 0; i < width; ++i) out[i] = (x[i] - mean) * scale * weight[i] + bias[i];
}

}  // namespace phi3mobile
