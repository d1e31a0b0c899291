// Rows of floats [count, width] between the products: rounded for them, normalised, activated. What becomes of a row does not
// depend on the others.
#pragma once

#include "share.h"
#include "tiles.h"

#include <vector>

namespace phi3mobile {

constexpr int64_t kWorthThreads = 1 << 14;  // elements of an elementwise loop below which threads save nothing
constexpr int64_t kWorthWaking = 1 << 18;   // multiply-adds of a product below which threads save nothing

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
