// Checks the attention loops against float64, without ExecuTorch: for cross-built machines (an emulator, a phone's shell).
//   cmake --build build/native --target attention_check && build/native/attention_check
#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

using namespace phi3mobile;

namespace {

std::mt19937 random_bits(7);

std::vector<float> normal(int64_t count) {
  std::normal_distribution<float> x;
  std::vector<float> values(count);
  for (float& v : values) v = x(random_bits);
  return values;
}

// One head of qkv, rotated where it is a query or a key, in float64.
std::vector<double> rotated(const float* x, const float* cos, const float* sin, int64_t half, int64_t width) {
  std::vector<double> y(x, x + width);
  for (int64_t i = 0; i < half; ++i) {
    y[i] = double(x[i]) * cos[i] - double(x[i + half]) * sin[i];
    y[i + half] = double(x[i + half]) * cos[i] + double(x[i]) * sin[i];
  }
  return y;
}

// All rows of a call, their keys in so many pieces.
void attend_all(const Loops& loops, const Attention& a, int64_t splits) {
  const int64_t group = a.heads / a.kv_heads, all_rows = a.count * group;
  const int64_t tile = std::min(kTileRows, all_rows), size = part_floats(tile, a.width);
  std::vector<float> scratch(scratch_floats(tile, a.width)), memory(splits * size);
  for (int64_t head = 0; head < a.kv_heads; ++head) {
    for (int64_t row = 0; row < all_rows; row += tile) {
      const int64_t rows = std::min(tile, all_rows - row), end = a.position + (row + rows - 1) / group + 1;
      std::vector<Part> parts;
      for (int64_t i = 0; i < splits; ++i) {
        float* at = &memory[i * size];
        float* peaks = at + tile * a.width;
        parts.push_back({head, row, rows, end * i / splits, end * (i + 1) / splits, 0, 0, 0, at, peaks, peaks + tile});
        loops.attend(a, parts.back(), scratch.data());
      }
      loops.finish(a, parts.data(), splits);
    }
  }
}

// Largest error over the largest value of the last `count` tokens, after `position` others.
double error_of(const Loops& loops, bool int8, int64_t heads, int64_t kv_heads, int64_t width, int64_t half, int64_t count,
    int64_t position, int64_t window, int64_t splits) {
  const int64_t all = position + count, capacity = all + 3, cells = kv_heads * capacity * width, group = heads / kv_heads;
  const int64_t step = (heads + 2 * kv_heads) * width;
  const std::vector<float> qkv = normal(all * step), cos = normal(all * half), sin = normal(all * half);
  std::vector<float> floats[2], scales[2], out(count * heads * width);
  std::vector<int8_t> bytes[2];
  for (int i = 0; i < 2; ++i) {
    floats[i].resize(cells), bytes[i].resize(cells), scales[i].resize(kv_heads * capacity);
  }
  Attention a{};
  a.qkv = qkv.data(), a.cos = cos.data(), a.sin = sin.data(), a.out = out.data();
  a.k_cache = int8 ? static_cast<void*>(bytes[0].data()) : floats[0].data();
  a.v_cache = int8 ? static_cast<void*>(bytes[1].data()) : floats[1].data();
  a.k_scale = int8 ? scales[0].data() : nullptr, a.v_scale = int8 ? scales[1].data() : nullptr;
  a.count = all, a.heads = heads, a.kv_heads = kv_heads, a.width = width, a.capacity = capacity, a.half = half;
  a.position = 0, a.window = window, a.scale = 1 / std::sqrt(static_cast<float>(width));
  loops.write(a, 0, all / 2);
  loops.write(a, all / 2, all);
  a.qkv += position * step, a.cos += position * half, a.sin += position * half;
  a.count = count, a.position = position;

  double worst = 0, most = 0;
  const auto compare = [&](double got, double want, double allowed) {
    worst = std::max(worst, std::max(0.0, std::fabs(got - want) - allowed));
    most = std::max(most, std::fabs(want));
  };
  // The stored rows, in float64: half a step of int8 from what they should be at most.
  std::vector<double> stored[2];
  for (int i = 0; i < 2; ++i) {
    stored[i].resize(cells);
    for (int64_t row = 0; row < kv_heads * capacity; ++row) {
      const int64_t t = row % capacity, head = row / capacity;
      if (t >= all) continue;
      const float* from = &qkv[t * step + (heads + i * kv_heads + head) * width];
      const std::vector<double> want = rotated(from, &cos[t * half], &sin[t * half], i ? 0 : half, width);
      for (int64_t d = 0; d < width; ++d) {
        const int64_t at = row * width + d;
        stored[i][at] = int8 ? double(bytes[i][at]) * scales[i][row] : floats[i][at];
        compare(stored[i][at], want[d], int8 ? 0.5 * scales[i][row] : 0);
      }
    }
  }

  attend_all(loops, a, splits);

  std::vector<double> weights(capacity);
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      const float* from = a.qkv + t * step + h * width;
      const std::vector<double> q = rotated(from, a.cos + t * half, a.sin + t * half, half, width);
      const int64_t base = h / group * capacity, end = position + t + 1;
      const int64_t first = window ? std::max<int64_t>(0, end - window) : 0;
      double total = 0;
      for (int64_t j = first; j < end; ++j) {
        double score = 0;
        for (int64_t d = 0; d < width; ++d) score += q[d] * stored[0][(base + j) * width + d];
        total += weights[j] = std::exp(score * a.scale);
      }
      for (int64_t d = 0; d < width; ++d) {
        double want = 0;
        for (int64_t j = first; j < end; ++j) want += weights[j] / total * stored[1][(base + j) * width + d];
        compare(out[(t * heads + h) * width + d], want, 0);
      }
    }
  }
  return worst / most;
}

// In groups of 32 by the normalized Hadamard matrix, in T's arithmetic.
template <class T>
void turn_groups(std::vector<T>& x) {
  for (size_t step = 1; step < size_t(kGroup); step *= 2) {
    for (size_t i = 0; i < x.size(); ++i) {
      if (i & step) continue;
      const T a = x[i], b = x[i + step];
      x[i] = a + b, x[i + step] = a - b;
    }
  }
  for (T& v : x) v *= T(0.17677669529663687f);
}

// As error_of, of rows of 4 bits and their ring, with keys and queries that are not rotated: their integers are exact.
double coarse_error_of(const Loops& loops, int64_t heads, int64_t kv_heads, int64_t width, int64_t count, int64_t position,
    int64_t window, int64_t splits) {
  const int64_t all = position + count, capacity = all + 3, groups = width / kGroup, step = (heads + 2 * kv_heads) * width;
  const std::vector<float> qkv = normal(all * step), cos(all, 1), sin(all, 0);
  std::vector<float> out(count * heads * width), ring_scales[2];
  std::vector<int8_t> rings[2];
  std::vector<uint8_t> codes[2];
  std::vector<uint16_t> scales[2];
  for (int i = 0; i < 2; ++i) {
    rings[i].resize(kv_heads * kRing * width), ring_scales[i].resize(kv_heads * kRing);
    codes[i].resize(kv_heads * capacity * width / 2), scales[i].resize(kv_heads * groups * capacity);
  }
  Attention a{};
  a.qkv = qkv.data(), a.cos = cos.data(), a.sin = sin.data(), a.out = out.data();
  a.k_cache = rings[0].data(), a.v_cache = rings[1].data();
  a.k_scale = ring_scales[0].data(), a.v_scale = ring_scales[1].data();
  a.heads = heads, a.kv_heads = kv_heads, a.width = width, a.capacity = kRing, a.half = 1;
  a.window = window, a.scale = 1 / std::sqrt(static_cast<float>(width));
  a.coarse = {codes[0].data(), codes[1].data(), scales[0].data(), scales[1].data(), capacity, 0, nullptr};
  a.coarse.ring_from = std::max<int64_t>(0, position - kRing);
  a.count = all;
  loops.write(a, 0, all);
  a.qkv += position * step, a.cos += position, a.sin += position, a.count = count, a.position = position;
  attend_all(loops, a, splits);

  const int levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  const auto stored = [&](int i, int64_t head, int64_t at, bool fine, int64_t d) {
    if (fine) {
      const int64_t row = head * kRing + at % kRing;
      return double(rings[i][row * width + d]) * ring_scales[i][row];
    }
    const int64_t g = d / kGroup, n = d % kGroup;
    const uint8_t byte = codes[i][((head * capacity + at) * groups + g) * (kGroup / 2) + n % (kGroup / 2)];
    const uint32_t bits = uint32_t(scales[i][(head * groups + g) * capacity + at]) << 16;
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return levels[n < kGroup / 2 ? byte & 15 : byte >> 4] * double(scale);
  };
  double worst = 0, most = 0;
  for (int i = 0; i < 2; ++i) {  // 4-bit rows: half of the widest gap between levels from what they should be at most
    for (int64_t t = 0; t < all; ++t) {
      for (int64_t head = 0; head < kv_heads; ++head) {
        const float* from = &qkv[t * step + (heads + i * kv_heads + head) * width];
        std::vector<double> want(from, from + width);
        turn_groups(want);
        for (int64_t d = 0; d < width; ++d) {
          float scale = 0;
          const uint32_t bits = uint32_t(scales[i][(head * groups + d / kGroup) * capacity + t]) << 16;
          std::memcpy(&scale, &bits, sizeof scale);
          // 127 lies 14 beyond the last level
          worst = std::max(worst, std::fabs(stored(i, head, t, false, d) - want[d]) - 14.6 * std::fabs(scale));
        }
      }
    }
  }
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t head = h / (heads / kv_heads), at = position + t;
      std::vector<float> q(a.qkv + t * step + h * width, a.qkv + t * step + (h + 1) * width);
      turn_groups(q);
      float peak = 0;
      for (const float v : q) peak = std::max(peak, std::fabs(v));
      const float inverse = 127.0f / peak;
      const int64_t first = window ? std::max<int64_t>(0, at + 1 - window) : 0;
      const int64_t fine = std::max(at + 1 - kRecent, a.coarse.ring_from);
      std::vector<double> sums(width);
      double total = 0;
      for (int64_t j = first; j <= at; ++j) {
        double score = 0;
        for (int64_t d = 0; d < width; ++d) score += double(std::rint(q[d] * inverse)) * stored(0, head, j, j >= fine, d);
        const double weight = std::exp(score * (peak / 127.0f) * a.scale);
        total += weight;
        for (int64_t d = 0; d < width; ++d) sums[d] += weight * stored(1, head, j, j >= fine, d);
      }
      turn_groups(sums);
      for (int64_t d = 0; d < width; ++d) {
        worst = std::max(worst, std::fabs(out[(t * heads + h) * width + d] - sums[d] / total));
        most = std::max(most, std::fabs(sums[d] / total));
      }
    }
  }
  return worst / most;
}

bool check(const char* name, const Loops& loops) {
  double worst = 0;
  for (const bool int8 : {false, true}) {
    for (const int64_t width : {16, 64, 80, 96, 128, 256}) {
      for (const int64_t group : {1, 3, 4}) {
        const int64_t half = group == 3 ? width / 2 - 5 : width / 2;
        for (const int64_t count : {1, 2, 7, 33}) {
          for (const int64_t position : {0, 5, 130}) {
            worst = std::max(worst, error_of(loops, int8, 2 * group, 2, width, half, count, position, 0, 1));
            worst = std::max(worst, error_of(loops, int8, 2 * group, 2, width, half, count, position, 17, 1));
            worst = std::max(worst, error_of(loops, int8, 2 * group, 2, width, half, count, position, 0, 3));
          }
        }
      }
    }
  }
  for (const int64_t width : {32, 96, 256}) {
    for (const int64_t group : {1, 2, 3, 4}) {
      for (const int64_t count : {1, 40}) {
        for (const int64_t position : {5, 300}) {
          worst = std::max(worst, coarse_error_of(loops, 2 * group, 2, width, count, position, 0, 1));
          worst = std::max(worst, coarse_error_of(loops, 2 * group, 2, width, count, position, 150, 3));
        }
      }
    }
  }
  std::printf("%s: largest relative error %.2g\n", name, worst);
  return worst <= 1e-5;
}

}  // namespace

int main() {
  bool good = check("baseline", baseline::loops);
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) good &= check("avx2", avx2::loops);
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) good &= check("avx512", avx512::loops);
#endif
  return good ? 0 : 1;
}
