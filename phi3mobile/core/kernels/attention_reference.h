// What attention_fuzz compares with: the formula in float64, over what a cache keeps of each row.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace reference {

// How a cache keeps rows. Int4: of 4 bits, and the last kRing positions' in int8 beside them.
enum class Form { Float, Int8, Int4 };

constexpr int64_t kRing = 256, kRecent = 128, kGroup = 32;

struct Shape {
  int64_t heads, kv_heads, width, half, capacity, window, block, local_blocks, stride, head_step, ring, kept, positions;
  Form form;
  bool evicting;

  bool sees(int64_t head, int64_t query, int64_t key) const {
    if (key > query) return false;
    if (block == 0) return window == 0 || key > query - window;
    return query / block - key / block < local_blocks || (key / block + head * head_step + 1) % stride == 0;
  }
  int64_t reach() const { return ring / (stride - kept) * stride + ring % (stride - kept); }
};

// The tokens of a call: float32 qkv [T, (H + 2 Hkv) * D], cos and sin [T, R], and the result [T, H * D].
struct Call {
  const float *qkv, *cos, *sin, *out;
  int64_t count, position;
};

// One head, rotated in T's arithmetic.
template <class T>
std::vector<T> rotated(const float* x, const float* cos, const float* sin, int64_t half, int64_t width) {
  std::vector<T> y(x, x + width);
  for (int64_t i = 0; i < half; ++i) {
    const T a = T(x[i]) * T(cos[i]), b = T(x[i + half]) * T(sin[i]), c = T(x[i + half]) * T(cos[i]), d = T(x[i]) * T(sin[i]);
    y[i] = a - b, y[i + half] = c + d;
  }
  return y;
}

// Every group of 32 by the normalized Hadamard matrix, which is its own inverse.
template <class T>
void turn(std::vector<T>& row) {
  for (size_t first = 0; first < row.size(); first += kGroup) {
    for (int64_t step = 1; step < kGroup; step *= 2) {
      for (int64_t i = 0; i < kGroup; ++i) {
        if (i & step) continue;
        T &a = row[first + i], &b = row[first + i + step];
        const T sum = a + b, difference = a - b;
        a = sum, b = difference;
      }
    }
    for (int64_t i = 0; i < kGroup; ++i) row[first + i] *= T(0.17677669529663687);
  }
}

// A row as int8 keeps it, by the kernel's float32 arithmetic.
inline std::vector<double> in_int8(const std::vector<float>& x) {
  std::vector<double> y(x.size());
  float peak = 0;
  for (const float v : x) peak = std::max(peak, std::fabs(v));
  const float inverse = peak > 0 ? 127.0f / peak : 0.0f, scale = peak / 127.0f;
  for (size_t i = 0; i < x.size(); ++i) y[i] = double(std::rint(x[i] * inverse)) * scale;
  return y;
}

// A turned row as 4 bits keep it, likewise: the nearest of 16 levels, the lower of two as near, times a bfloat16 a group.
inline std::vector<double> in_int4(const std::vector<float>& x) {
  constexpr float levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  std::vector<double> y(x.size());
  for (size_t first = 0; first < x.size(); first += kGroup) {
    float peak = 0;
    for (size_t i = first; i < first + kGroup; ++i) peak = std::fabs(x[i]) > std::fabs(peak) ? x[i] : peak;
    float scale = peak / -127.0f;
    uint32_t bits;
    std::memcpy(&bits, &scale, sizeof bits);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
    std::memcpy(&scale, &bits, sizeof bits);
    if (!(std::fabs(scale) > 1e-30f)) continue;
    const float inverse = 1.0f / scale;
    for (size_t i = first; i < first + kGroup; ++i) {
      int code = 0;
      while (code < 15 && x[i] * inverse > 0.5f * (levels[code] + levels[code + 1])) ++code;
      y[i] = double(levels[code]) * scale;
    }
  }
  return y;
}

// The sequence so far, in float64.
class History {
 public:
  explicit History(const Shape& shape) : s(shape) { slots_.fill(-1); }

  void take(const Call& call) {
    keys_.resize((call.position + call.count) * s.kv_heads), values_.resize(keys_.size());
    fine_.resize(call.position + call.count);
    for (int64_t t = 0; t < call.count; ++t) {
      const int64_t at = call.position + t;
      for (int64_t g = 0; g < s.kv_heads; ++g) {
        const float* from = call.qkv + (t * (s.heads + 2 * s.kv_heads) + s.heads + g) * s.width;
        const float* value = from + s.kv_heads * s.width;
        keys_[at * s.kv_heads + g] = kept(rotated<float>(from, call.cos + t * s.half, call.sin + t * s.half, s.half, s.width));
        values_[at * s.kv_heads + g] = kept(std::vector<float>(value, value + s.width));
      }
      slots_[at % kRing] = at;
      for (int64_t back = 0; back < kRecent; ++back) fine_[at][back] = back <= at && slots_[(at - back) % kRing] == at - back;
    }
  }

  // Largest error over the largest value, over every `step`-th of the new tokens.
  double error(const Call& call, int64_t step) const {
    double worst = 0, most = 1e-9;
    for (int64_t t = 0; t < call.count; t += step) {
      for (int64_t h = 0; h < s.heads; ++h) {
        const auto wanted = attended(call, t, h);
        for (int64_t d = 0; d < s.width; ++d) {
          const double got = call.out[(t * s.heads + h) * s.width + d];
          worst = std::isfinite(got) ? std::max(worst, std::fabs(got - wanted[d])) : INFINITY;
          most = std::max(most, std::fabs(wanted[d]));
        }
      }
    }
    return worst / most;
  }

 private:
  struct Row {
    std::vector<double> fine, coarse;  // coarse: where keys of long ago are kept otherwise
  };

  Row kept(std::vector<float> row) const {
    if (s.form == Form::Float) return {std::vector<double>(row.begin(), row.end()), {}};
    if (s.form == Form::Int8) return {in_int8(row), {}};
    turn(row);
    return {in_int8(row), in_int4(row)};
  }

  std::vector<double> query(const Call& call, int64_t t, int64_t h) const {
    const float* from = call.qkv + (t * (s.heads + 2 * s.kv_heads) + h) * s.width;
    const float *cos = call.cos + t * s.half, *sin = call.sin + t * s.half;
    if (s.form != Form::Int4) return rotated<double>(from, cos, sin, s.half, s.width);
    auto row = rotated<float>(from, cos, sin, s.half, s.width);
    turn(row);
    return in_int8(row);
  }

  std::vector<double> attended(const Call& call, int64_t t, int64_t h) const {
    const auto q = query(call, t, h);
    const int64_t position = call.position + t;
    std::vector<double> sums(s.width);
    double total = 0;
    for (int64_t j = 0; j <= position; ++j) {
      if (!s.sees(h, position, j)) continue;
      const int64_t at = j * s.kv_heads + h / (s.heads / s.kv_heads), back = position - j;
      const bool coarse = s.form == Form::Int4 && !(back < kRecent && fine_[position][back]);
      const auto &key = coarse ? keys_[at].coarse : keys_[at].fine, &value = coarse ? values_[at].coarse : values_[at].fine;
      double score = 0;
      for (int64_t d = 0; d < s.width; ++d) score += q[d] * key[d];
      const double weight = std::exp(score / s.width);
      total += weight;
      for (int64_t d = 0; d < s.width; ++d) sums[d] += weight * value[d];
    }
    for (double& x : sums) x /= total;
    if (s.form == Form::Int4) turn(sums);
    return sums;
  }

  const Shape s;
  std::vector<Row> keys_, values_;               // [position * kv_heads + head]
  std::array<int64_t, kRing> slots_;             // the position whose int8 row lies there
  std::vector<std::array<bool, kRecent>> fine_;  // [position][how far back]: its int8 row was there
};

}  // namespace reference
