// What lies between two attentions, computed by tiles: the delegate of our recipes (export/targets/executorch/segments.py).
#pragma once

#include "rows.h"

#include <string>
#include <vector>

namespace phi3mobile {

// weight [rows, form.width] in tiles, with the bias [rows] of its linear or null.
struct Matrix {
  TileForm form{};
  int64_t rows = 0;
  const uint8_t* tiles = nullptr;
  const float* bias = nullptr;

  explicit operator bool() const { return tiles != nullptr; }
};

// One segment, by what it has:
//   o              x + o(second); without it x + second if there is a second input, else x
//   gate, up, down x + down(activation(gate(h), up(h))) of the normalised h
//   last           of the normalised x: the next layer's q, k, v, or the logits
// Results: x where the model goes on with it (gives_x), and last's, or without a last the normalised x.
struct Segment {
  int64_t hidden = 0;
  Matrix o, gate, up, down, last;
  bool layer_norm = false, gegelu = false, takes_second = false, gives_x = false;
  float eps = 0, limit = 0;

  // Vectors that it takes: per norm its weight and, of LayerNorm, bias; between two norms gegelu's slope.
  std::vector<int64_t> vector_sizes() const;
  int64_t width_of_second() const { return o ? o.form.width : hidden; }
  int64_t width_of_result() const { return last ? last.rows : hidden; }

  // x [count, hidden], second [count, width_of_second] or null; to_x [count, hidden] or null, result [count, width_of_result].
  // The rows of the results do not depend on each other.
  void run(const float* x, const float* second, const float* const* vectors, int64_t count, float* to_x, float* result) const;
};

}  // namespace phi3mobile
