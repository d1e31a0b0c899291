// Calls the operators as the runtime does, with random shapes, patterns, positions, alignments and thread counts, and compares
// with the formula in float64; wrong arguments must come back as errors. Meant for sanitizers, and for cross-built machines:
//   cmake -S phi3mobile/core -B build/fuzz -DP3M_SANITIZE=ON && cmake --build build/fuzz --target attention_fuzz
//   build/fuzz/attention_fuzz [seconds] [seed]
#include "phi3mobile.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <executorch/runtime/core/evalue.h>
#include <executorch/runtime/core/exec_aten/exec_aten.h>
#include <executorch/runtime/kernel/kernel_includes.h>
#include <executorch/runtime/kernel/operator_registry.h>
#include <executorch/runtime/platform/platform.h>
#include <executorch/runtime/platform/runtime.h>

namespace {

using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::aten::TensorImpl;
using executorch::runtime::EValue;

std::mt19937_64 bits;

int64_t any(int64_t least, int64_t most) { return std::uniform_int_distribution<int64_t>(least, most)(bits); }
bool chance(double p) { return std::bernoulli_distribution(p)(bits); }

// A tensor in memory of exactly its size, at an address with no more alignment than its type needs.
template <class T>
struct Operand {
  std::vector<executorch::aten::SizesType> sizes;
  std::vector<executorch::aten::DimOrderType> order;
  std::vector<executorch::aten::StridesType> strides;
  std::unique_ptr<T[]> memory;
  T* data;
  int64_t count = 1;
  std::unique_ptr<TensorImpl> impl;

  Operand(ScalarType type, std::vector<int64_t> shape) : sizes(shape.begin(), shape.end()) {
    strides.resize(shape.size());
    for (size_t i = shape.size(); i-- > 0;) strides[i] = count, count *= shape[i];
    for (size_t i = 0; i < shape.size(); ++i) order.push_back(i);
    const int64_t shift = any(0, 15);
    memory.reset(new T[count + shift]());
    data = memory.get() + shift;
    impl.reset(new TensorImpl(type, sizes.size(), sizes.data(), data, order.data(), strides.data()));
  }
  EValue value() { return EValue(Tensor(impl.get())); }
};

struct Shape {
  int64_t heads, kv_heads, width, half, capacity, window, block, local_blocks, stride, head_step, ring, kept, positions;
  bool int8, evicting;

  bool sees(int64_t head, int64_t query, int64_t key) const {
    if (key > query) return false;
    if (block == 0) return window == 0 || key > query - window;
    return query / block - key / block < local_blocks || (key / block + head * head_step + 1) % stride == 0;
  }
  int64_t reach() const { return ring / (stride - kept) * stride + ring % (stride - kept); }
};

Shape any_shape() {
  Shape s{};
  s.kv_heads = any(1, 3), s.heads = s.kv_heads * (chance(0.05) ? 70 : any(1, 5));
  s.width = 16 * (chance(0.1) ? 16 : any(1, 8)), s.half = any(1, s.width / 2);
  s.int8 = chance(0.6), s.capacity = s.positions = any(1, 300);
  if (chance(0.25)) {
    if (chance(0.5)) s.window = any(1, 100);
    return s;
  }
  s.block = chance(0.3) ? any(60, 130) : any(1, 20), s.local_blocks = any(1, 5), s.stride = any(1, 9), s.head_step = any(0, 20);
  s.kept = 0;  // by the formula, not by the kernel's arithmetic
  for (int64_t residue = 0; residue < s.stride; ++residue) {
    bool seen = false;
    for (int64_t h = 0; h < s.heads / s.kv_heads; ++h) seen |= (residue + h * s.head_step + 1) % s.stride == 0;
    s.kept += seen;
  }
  if (s.kept < s.stride && chance(0.6)) {
    s.evicting = true;
    s.ring = (s.local_blocks + s.stride - 1) / s.stride * (s.stride - s.kept) + any(0, 7);
    const int64_t periods = any(1, 1 + 300 / (s.stride * s.block));
    s.capacity = (periods * s.kept + s.ring) * s.block, s.positions = periods * s.stride * s.block;
  }
  return s;
}

struct Caches {
  Operand<float> k, v, k_scale, v_scale;
  Operand<int8_t> k_bytes, v_bytes;
  Operand<int64_t> mark;

  explicit Caches(const Shape& s)
      : k(ScalarType::Float, {1, s.kv_heads, s.int8 ? 1 : s.capacity, s.width}),
        v(ScalarType::Float, {1, s.kv_heads, s.int8 ? 1 : s.capacity, s.width}),
        k_scale(ScalarType::Float, {1, s.kv_heads, s.capacity}),
        v_scale(ScalarType::Float, {1, s.kv_heads, s.capacity}),
        k_bytes(ScalarType::Char, {1, s.kv_heads, s.int8 ? s.capacity : 1, s.width}),
        v_bytes(ScalarType::Char, {1, s.kv_heads, s.int8 ? s.capacity : 1, s.width}),
        mark(ScalarType::Long, {1}) {}
};

struct Rows {
  Operand<float> qkv, cos, sin, out;
  Operand<int64_t> position;

  Rows(const Shape& s, int64_t count)
      : qkv(ScalarType::Float, {count, (s.heads + 2 * s.kv_heads) * s.width}),
        cos(ScalarType::Float, {count, s.half}),
        sin(ScalarType::Float, {count, s.half}),
        out(ScalarType::Float, {count, s.heads * s.width}),
        position(ScalarType::Long, {1}) {
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<float> angle(0, 6.3f);
    for (int64_t i = 0; i < qkv.count; ++i) qkv.data[i] = normal(bits);
    for (int64_t i = 0; i < cos.count; ++i) {
      const float x = angle(bits);
      cos.data[i] = std::cos(x), sin.data[i] = std::sin(x);
    }
  }
};

// False: the operator reported an error.
bool call(const Shape& s, Rows& rows, Caches& caches, int64_t position) {
  rows.position.data[0] = position;
  std::vector<EValue> values{rows.qkv.value(), rows.cos.value(), rows.sin.value()};
  if (s.int8) {
    for (EValue x : {caches.k_bytes.value(), caches.v_bytes.value(), caches.k_scale.value(), caches.v_scale.value()})
      values.push_back(x);
  } else {
    for (EValue x : {caches.k.value(), caches.v.value()}) values.push_back(x);
  }
  if (s.evicting) values.push_back(caches.mark.value());
  values.push_back(rows.position.value());
  values.push_back(EValue(s.heads));
  if (!s.evicting) values.push_back(EValue(s.window));
  values.push_back(EValue(1.0 / s.width));
  for (const int64_t x : {s.block, s.local_blocks, s.stride, s.head_step}) values.push_back(EValue(x));
  if (s.evicting) values.push_back(EValue(s.ring));
  values.push_back(rows.out.value());
  std::vector<EValue*> stack;
  for (EValue& x : values) stack.push_back(&x);
  const std::string name =
      std::string("phi3mobile::blocksparse_attention") + (s.evicting ? "_evicting" : "") + (s.int8 ? "_int8" : "") + ".out";
  const auto found = executorch::runtime::get_op_function_from_registry(name.c_str());
  if (!found.ok()) std::printf("%s is not registered\n", name.c_str()), std::exit(1);
  executorch::runtime::KernelRuntimeContext context;
  found.get()(context, {stack.data(), stack.size()});
  return context.failure_state() == executorch::runtime::Error::Ok;
}

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

// What an int8 cache keeps of a row, by the same float32 arithmetic as the kernel's.
std::vector<double> stored(const std::vector<float>& x, bool int8) {
  std::vector<double> y(x.begin(), x.end());
  float peak = 0;
  for (const float v : x) peak = std::max(peak, std::fabs(v));
  const float inverse = peak > 0 ? 127.0f / peak : 0.0f, scale = peak / 127.0f;
  if (int8) {
    for (size_t i = 0; i < x.size(); ++i) y[i] = double(std::rint(x[i] * inverse)) * scale;
  }
  return y;
}

// The sequence so far, in float64.
struct History {
  std::vector<std::vector<double>> keys, values;  // [position * kv_heads + head]

  void take(const Shape& s, const Rows& rows, int64_t count, int64_t position) {
    keys.resize((position + count) * s.kv_heads), values.resize(keys.size());
    for (int64_t t = 0; t < count; ++t) {
      for (int64_t g = 0; g < s.kv_heads; ++g) {
        const float* from = rows.qkv.data + (t * (s.heads + 2 * s.kv_heads) + s.heads + g) * s.width;
        const float* value = from + s.kv_heads * s.width;
        const int64_t at = (position + t) * s.kv_heads + g;
        keys[at] =
            stored(rotated<float>(from, rows.cos.data + t * s.half, rows.sin.data + t * s.half, s.half, s.width), s.int8);
        values[at] = stored(std::vector<float>(value, value + s.width), s.int8);
      }
    }
  }

  // Largest error over the largest value, over a few of the new tokens.
  double error(const Shape& s, const Rows& rows, int64_t count, int64_t position) const {
    double worst = 0, most = 1e-9;
    for (int64_t t = 0; t < count; t += 1 + any(0, 5)) {
      for (int64_t h = 0; h < s.heads; ++h) {
        const float* from = rows.qkv.data + (t * (s.heads + 2 * s.kv_heads) + h) * s.width;
        const auto q = rotated<double>(from, rows.cos.data + t * s.half, rows.sin.data + t * s.half, s.half, s.width);
        std::vector<double> sums(s.width);
        double total = 0;
        for (int64_t j = 0; j <= position + t; ++j) {
          if (!s.sees(h, position + t, j)) continue;
          const int64_t at = j * s.kv_heads + h / (s.heads / s.kv_heads);
          double score = 0;
          for (int64_t d = 0; d < s.width; ++d) score += q[d] * keys[at][d];
          const double weight = std::exp(score / s.width);
          total += weight;
          for (int64_t d = 0; d < s.width; ++d) sums[d] += weight * values[at][d];
        }
        for (int64_t d = 0; d < s.width; ++d) {
          const double want = sums[d] / total, got = rows.out.data[(t * s.heads + h) * s.width + d];
          worst = std::isfinite(got) ? std::max(worst, std::fabs(got - want)) : INFINITY;
          most = std::max(most, std::fabs(want));
        }
      }
    }
    return worst / most;
  }
};

// A call that must fail, on caches of their own.
bool refuses(Shape s) {
  Caches caches(s);
  Rows rows(s, any(1, 4));
  const int64_t wild[] = {-1, INT64_MIN, INT64_MAX, int64_t(1) << 40, -(int64_t(1) << 33)};
  const int64_t number = wild[any(0, 4)];
  int64_t position = 0;
  switch (any(0, s.block ? 6 : 2)) {
    case 0:
      position = number;
      break;
    case 1:
      s.heads = number;
      break;
    case 2:
      position = s.positions;
      break;
    case 3:
      s.stride = number;
      break;
    case 4:
      s.local_blocks = number;
      break;
    case 5:
      s.head_step = number;
      break;
    default:
      s.block = number;
  }
  return !call(s, rows, caches, position);
}

bool sequence(int64_t* calls) {
  const Shape s = any_shape();
  p3m_set_threads(any(1, 5));
  const char* isas[] = {nullptr, "avx512", "avx2", "baseline"};
  p3m_use_isa(isas[any(0, 3)]);
  Caches caches(s);
  if (s.evicting) caches.mark.data[0] = any(-5, 1000);  // memory as it comes: position 0 starts afresh
  History history;
  int64_t position = 0, farthest = 0;
  double worst = 0;
  for (int64_t step = any(1, 8); step-- > 0 && position < s.positions; ++*calls) {
    const int64_t count = std::min(s.positions - position, chance(0.4) ? 1 : any(1, chance(0.3) ? 300 : 40));
    Rows rows(s, count);
    const bool there = !s.evicting || position == 0 ||
                       (farthest - 1) / s.block - std::max<int64_t>(0, position / s.block - s.local_blocks + 1) < s.reach();
    const bool done = call(s, rows, caches, position);
    bool good = done == there;
    if (done && good) {
      history.take(s, rows, count, position);
      const double error = history.error(s, rows, count, position);
      worst = std::max(worst, error), good = error <= 1e-5;
    }
    if (!good) {
      std::printf(
          "wrong (%.2g): int8 %d evicting %d heads %lld/%lld of %lld, half %lld, rows %lld, window %lld, block %lld, local "
          "%lld, "
          "stride %lld, head_step %lld, ring %lld: %lld tokens at %lld, farthest %lld, threads %d\n",
          worst, s.int8, s.evicting, (long long)s.heads, (long long)s.kv_heads, (long long)s.width, (long long)s.half,
          (long long)s.capacity, (long long)s.window, (long long)s.block, (long long)s.local_blocks, (long long)s.stride,
          (long long)s.head_step, (long long)s.ring, (long long)count, (long long)position, (long long)farthest, p3m_threads());
      return false;
    }
    if (done) farthest = position == 0 ? count : std::max(farthest, position + count), position += count;
    if (!done) position = 0;
    if (chance(0.3) && position > 0) position -= any(1, chance(0.3) ? position : std::min<int64_t>(position, 9));
  }
  if (!refuses(s)) return std::printf("wrong arguments were taken\n"), false;
  return true;
}

void silent(et_timestamp_t, et_pal_log_level_t, const char*, const char*, size_t, const char*, size_t) {}

}  // namespace

int main(int count, char** arguments) {
  const double seconds = count > 1 ? std::atof(arguments[1]) : 10;
  const int64_t seed = count > 2 ? std::atoll(arguments[2]) : 1;
  executorch::runtime::runtime_init();
  executorch::runtime::register_pal(executorch::runtime::PalImpl::create(silent, __FILE__));
  const auto start = std::chrono::steady_clock::now();
  int64_t sequences = 0, calls = 0;
  for (; std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < seconds; ++sequences) {
    bits.seed(seed * 1000003 + sequences);
    if (!sequence(&calls)) return std::printf("seed %lld, sequence %lld\n", (long long)seed, (long long)sequences), 1;
  }
  std::printf("%lld sequences, %lld calls, none wrong\n", (long long)sequences, (long long)calls);
  return 0;
}
