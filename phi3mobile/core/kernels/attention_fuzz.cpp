// Calls the operators as the runtime does, with random shapes, patterns, positions, alignments and thread counts, and compares
// with the formula in float64; wrong arguments must come back as errors. Meant for sanitizers, and for cross-built machines:
//   cmake -S phi3mobile/core -B build/fuzz -DP3M_SANITIZE=ON && cmake --build build/fuzz --target attention_fuzz
//   build/fuzz/attention_fuzz [seconds] [seed]
#include "attention_reference.h"
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
using reference::Form;
using reference::History;
using reference::kGroup;
using reference::kRing;
using reference::Shape;

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

Shape any_shape() {
  Shape s{};
  s.kv_heads = any(1, 3), s.heads = s.kv_heads * (chance(0.05) ? 70 : any(1, 5));
  s.width = 16 * (chance(0.1) ? 16 : any(1, 8)), s.half = any(1, s.width / 2);
  s.form = chance(0.5) ? Form::Int8 : Form::Float, s.capacity = s.positions = any(1, 300);
  if (chance(0.3)) {
    s.form = Form::Int4, s.width = kGroup * any(1, 8), s.half = any(1, s.width / 2);
    s.capacity = s.positions = any(1, 600);
    if (chance(0.3)) s.window = any(1, 300);
    return s;
  }
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

// As a call takes them, marks of its own at the end.
struct Caches {
  std::vector<Operand<uint16_t>> wide;  // bfloat16
  std::vector<Operand<float>> floats;
  std::vector<Operand<uint8_t>> bytes;
  Operand<int64_t> mark;
  std::vector<EValue> values;

  explicit Caches(const Shape& s) : mark(ScalarType::Long, {s.form == Form::Int4 ? 2 : 1}) {
    const auto both = [&](auto& kind, ScalarType type, const std::vector<int64_t>& shape) {
      for (int i = 0; i < 2; ++i) values.push_back(kind.emplace_back(type, shape).value());
    };
    if (s.form == Form::Int4) {
      both(bytes, ScalarType::Byte, {1, s.kv_heads, s.capacity, s.width / 2});
      both(wide, ScalarType::BFloat16, {1, s.kv_heads, s.width / kGroup, s.capacity});
    }
    const int64_t rows = s.form == Form::Int4 ? kRing : s.capacity;
    if (s.form == Form::Float) {
      both(floats, ScalarType::Float, {1, s.kv_heads, rows, s.width});
    } else {
      both(bytes, ScalarType::Char, {1, s.kv_heads, rows, s.width});
      both(floats, ScalarType::Float, {1, s.kv_heads, rows});
    }
    if (s.evicting || s.form == Form::Int4) values.push_back(mark.value());
    // Memory as it comes: position 0 starts afresh.
    const int64_t odd[] = {0, -1, INT64_MIN, INT64_MAX, any(-5, 1000)};
    for (int64_t i = 0; i < mark.count; ++i) mark.data[i] = s.evicting ? any(-5, 1000) : odd[any(0, 4)];
  }
};

struct Rows {
  Operand<float> qkv, cos, sin, out;
  Operand<int64_t> position;

  int64_t count;

  Rows(const Shape& s, int64_t count)
      : qkv(ScalarType::Float, {count, (s.heads + 2 * s.kv_heads) * s.width}),
        cos(ScalarType::Float, {count, s.half}),
        sin(ScalarType::Float, {count, s.half}),
        out(ScalarType::Float, {count, s.heads * s.width}),
        position(ScalarType::Long, {1}),
        count(count) {
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<float> angle(0, 6.3f);
    for (int64_t i = 0; i < qkv.count; ++i) qkv.data[i] = normal(bits);
    for (int64_t i = 0; i < cos.count; ++i) {
      const float x = angle(bits);
      cos.data[i] = std::cos(x), sin.data[i] = std::sin(x);
    }
  }
};

std::string operator_of(const Shape& s) {
  const char* form = s.form == Form::Int4 ? "_int4" : s.form == Form::Int8 ? "_int8" : "";
  return std::string("phi3mobile::blocksparse_attention") + (s.evicting ? "_evicting" : "") + form + ".out";
}

// False: the operator reported an error. damage: done to the arguments before.
template <class Damage>
bool call(const Shape& s, Rows& rows, Caches& caches, int64_t position, const Damage& damage) {
  rows.position.data[0] = position;
  std::vector<EValue> values{rows.qkv.value(), rows.cos.value(), rows.sin.value()};
  values.insert(values.end(), caches.values.begin(), caches.values.end());
  values.push_back(rows.position.value());
  values.push_back(EValue(s.heads));
  if (!s.evicting) values.push_back(EValue(s.window));
  values.push_back(EValue(1.0 / s.width));
  if (s.form != Form::Int4) {
    for (const int64_t x : {s.block, s.local_blocks, s.stride, s.head_step}) values.push_back(EValue(x));
  }
  if (s.evicting) values.push_back(EValue(s.ring));
  values.push_back(rows.out.value());
  damage(values);
  std::vector<EValue*> stack;
  for (EValue& x : values) stack.push_back(&x);
  const std::string name = operator_of(s);
  const auto found = executorch::runtime::get_op_function_from_registry(name.c_str());
  if (!found.ok()) std::printf("%s is not registered\n", name.c_str()), std::exit(1);
  executorch::runtime::KernelRuntimeContext context;
  found.get()(context, {stack.data(), stack.size()});
  return context.failure_state() == executorch::runtime::Error::Ok;
}

bool call(const Shape& s, Rows& rows, Caches& caches, int64_t position) {
  return call(s, rows, caches, position, [](auto&) {});
}

// One tensor of a call with a dimension more or less than it should have, of another size, or of another type.
bool refuses_tensors(const Shape& s) {
  Caches caches(s);
  Rows rows(s, any(1, std::min<int64_t>(4, s.positions)));
  std::unique_ptr<Operand<int64_t>> odd;  // the widest type: enough memory for any
  return !call(s, rows, caches, 0, [&](std::vector<EValue>& values) {
    const size_t place = size_t(any(0, int64_t(3 + caches.values.size())));
    const Tensor good = values[place].toTensor();
    std::vector<int64_t> sizes(good.sizes().begin(), good.sizes().end());
    ScalarType type = good.scalar_type();
    const size_t at = size_t(any(0, int64_t(sizes.size()) - 1));
    switch (any(0, 4)) {
      case 0:
        sizes.push_back(1);
        break;
      case 1:
        sizes.pop_back();
        break;
      case 2:
        type = type == ScalarType::Float ? ScalarType::Int : ScalarType::Float;
        break;
      case 3:
        ++sizes[at];
        break;
      default:
        --sizes[at];
    }
    odd = std::make_unique<Operand<int64_t>>(type, sizes);
    values[place] = odd->value();
  });
}

// Memory of another life: a position within, marks that say anything. The result is nobody's, but nothing is broken.
bool survives(const Shape& s) {
  Caches caches(s);
  Rows rows(s, any(1, std::min<int64_t>(200, s.positions)));
  const int64_t position = any(0, s.positions - rows.count);
  const bool done = call(s, rows, caches, position);
  return done || s.evicting;  // which refuses to go back too far
}

// A call that must fail, on caches of their own.
bool refuses(Shape s) {
  Caches caches(s);
  Rows rows(s, any(1, 4));
  const int64_t wild[] = {-1, INT64_MIN, INT64_MAX, int64_t(1) << 40, -(int64_t(1) << 33)};
  const int64_t number = wild[any(0, 4)];
  int64_t position = 0;
  switch (any(s.block ? 0 : -1, s.block ? 6 : 2)) {
    case -1:
      s.window = chance(0.5) ? -1 : INT64_MIN;
      break;
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
  History history(s);
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
      const reference::Call made{rows.qkv.data, rows.cos.data, rows.sin.data, rows.out.data, count, position};
      history.take(made);
      const double error = history.error(made, 1 + any(0, 5));
      worst = std::max(worst, error), good = error <= 1e-5;
    }
    if (!good) {
      std::printf(
          "wrong (%.2g): %s, heads %lld/%lld of %lld, half %lld, rows %lld, window %lld, block %lld, local %lld, stride %lld, "
          "head_step %lld, ring %lld: %lld tokens at %lld, farthest %lld, threads %d, %s\n",
          worst, operator_of(s).c_str(), (long long)s.heads, (long long)s.kv_heads, (long long)s.width, (long long)s.half,
          (long long)s.capacity, (long long)s.window, (long long)s.block, (long long)s.local_blocks, (long long)s.stride,
          (long long)s.head_step, (long long)s.ring, (long long)count, (long long)position, (long long)farthest, p3m_threads(),
          p3m_isa());
      return false;
    }
    if (done) farthest = position == 0 ? count : std::max(farthest, position + count), position += count;
    if (!done) position = 0;
    if (chance(0.3) && position > 0) position -= any(1, chance(0.3) ? position : std::min<int64_t>(position, 9));
  }
  if (!refuses(s) || !refuses_tensors(s)) return std::printf("%s took wrong arguments\n", operator_of(s).c_str()), false;
  if (!survives(s)) return std::printf("%s failed on old memory\n", operator_of(s).c_str()), false;
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
