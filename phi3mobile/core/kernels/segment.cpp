#include "segment.h"

#include <algorithm>
#include <cstring>

namespace phi3mobile {
namespace {

constexpr int64_t kMostRows = 48;             // that go through a tile together
constexpr int64_t kCodesAtOnce = 160 * 1024;  // of these rows: what stays in a core's own cache

// What a thread that runs models keeps between segments.
struct Workspace {
  CodedRows narrow, wide;  // of hidden width, or attention's; of the MLP's
  std::vector<float> x, normalised, active;
};

Workspace& workspace() {
  thread_local Workspace kept;
  return kept;
}

// work(tile, first row, rows) for all tiles of a matrix, shared among the threads; rows of x that fit the cache at a time.
template <class Work>
void over_tiles(const Matrix& m, int64_t matrices, int64_t count, const Work& work) {
  const int64_t rows = std::min(kMostRows, std::max<int64_t>(kCodesAtOnce / m.form.width / 12 * 12, 12));
  const int64_t worth = kWorthWaking / (matrices * kTile * m.form.width * count);
  share_in_turns(m.form.tiles(m.rows), worth, [&](int64_t first, int64_t end) {
    for (int64_t row = 0; row < count; row += rows) {
      for (int64_t tile = first; tile < end; ++tile) work(tile, row, std::min(rows, count - row));
    }
  });
}

// out [count, 16]: rows times a tile of m, bias included.
void multiply_tile(const Matrix& m, int64_t tile, const CodedRow* rows, int64_t count, float* out) {
  phi3mobile::multiply_tile(m.tiles + tile * m.form.bytes(), m.form, rows, count, out);
  const int64_t column = tile * kTile, columns = std::min(kTile, m.rows - column);
  for (int64_t r = 0; r < count && m.bias; ++r) {
    for (int64_t i = 0; i < columns; ++i) out[r * kTile + i] += m.bias[column + i];
  }
}

// m's product with coded rows; put(row, column, columns, values) gets it in pieces.
template <class Put>
void multiply(const Matrix& m, const CodedRows& x, int64_t count, const Put& put) {
  over_tiles(m, 1, count, [&](int64_t tile, int64_t first, int64_t rows) {
    float out[kMostRows * kTile];
    const int64_t column = tile * kTile, columns = std::min(kTile, m.rows - column);
    multiply_tile(m, tile, &x.rows[size_t(first)], rows, out);
    for (int64_t r = 0; r < rows; ++r) put(first + r, column, columns, out + r * kTile);
  });
}

// to = from + m's product with coded rows.
void add_product(const Matrix& m, const CodedRows& coded, int64_t count, const float* from, float* to) {
  multiply(m, coded, count, [&](int64_t row, int64_t column, int64_t columns, const float* values) {
    const int64_t at = row * m.rows + column;
    for (int64_t i = 0; i < columns; ++i) to[at + i] = from[at + i] + values[i];
  });
}

}  // namespace

std::vector<int64_t> Segment::vector_sizes() const {
  const std::vector<int64_t> norm(layer_norm ? 2 : 1, hidden);
  std::vector<int64_t> sizes;
  if (gate) {
    sizes = norm;
    if (gegelu) sizes.push_back(1);
  }
  sizes.insert(sizes.end(), norm.begin(), norm.end());
  return sizes;
}

void Segment::run(
    const float* x, const float* second, const float* const* vectors, int64_t count, float* to_x, float* result) const {
  Workspace& kept = workspace();
  const auto grain = 1 + kWorthThreads / hidden;
  const size_t size = size_t(count * hidden);
  float* stream = to_x;  // x as it goes on
  if (!stream && takes_second) kept.x.resize(size), stream = kept.x.data();

  // The next norm's vectors, of rows of the stream -> to.
  const auto normalise = [&](const float* from, float* to) {
    share(count, grain, [&](int64_t first, int64_t end) {
      for (int64_t row = first; row < end; ++row) {
        const float *in = from + row * hidden, *weight = vectors[0];
        if (layer_norm) {
          phi3mobile::layer_norm(in, weight, vectors[1], eps, hidden, to + row * hidden);
        } else {
          rms_norm(in, weight, eps, hidden, to + row * hidden);
        }
      }
    });
    vectors += layer_norm ? 2 : 1;
  };

  if (o) {
    kept.narrow.code_all(second, count, o.form.width);
    add_product(o, kept.narrow, count, x, stream);
  } else if (second) {
    share(count, grain, [&](int64_t first, int64_t end) {
      for (int64_t i = first * hidden; i < end * hidden; ++i) stream[i] = x[i] + second[i];
    });
  }
  const float* now = second ? stream : x;
  kept.normalised.resize(size);
  if (gate) {
    normalise(now, kept.normalised.data());
    kept.narrow.code_all(kept.normalised.data(), count, hidden);
    kept.active.resize(size_t(count * gate.rows));
    const float slope = gegelu ? **vectors++ : 0;
    const int64_t inner = gate.rows;
    over_tiles(gate, 2, count, [&](int64_t tile, int64_t first, int64_t rows) {
      float left[kMostRows * kTile], right[kMostRows * kTile];
      const int64_t column = tile * kTile, columns = std::min(kTile, inner - column);
      multiply_tile(gate, tile, &kept.narrow.rows[size_t(first)], rows, left);
      multiply_tile(up, tile, &kept.narrow.rows[size_t(first)], rows, right);
      if (gegelu) {
        phi3mobile::gegelu(left, right, rows * kTile, limit, slope, left);
      } else {
        swiglu(left, right, rows * kTile, left);
      }
      for (int64_t r = 0; r < rows; ++r) {
        std::memcpy(kept.active.data() + (first + r) * inner + column, left + r * kTile, size_t(columns) * 4);
      }
    });
    kept.wide.code_all(kept.active.data(), count, inner);
    add_product(down, kept.wide, count, now, stream);
    now = stream;
  }
  if (!last) return normalise(now, result);
  normalise(now, kept.normalised.data());
  kept.narrow.code_all(kept.normalised.data(), count, hidden);
  multiply(last, kept.narrow, count, [&](int64_t row, int64_t column, int64_t columns, const float* values) {
    std::memcpy(result + row * last.rows + column, values, size_t(columns) * 4);
  });
}

}  // namespace phi3mobile
