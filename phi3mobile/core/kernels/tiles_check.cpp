// Checks the products by tiles against float64, without ExecuTorch: for cross-built machines (an emulator, a phone's shell).
//   cmake --build build/native --target tiles_check && build/native/tiles_check [speed]
#include "tiles.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

using namespace phi3mobile;

namespace {

std::mt19937 random_bits(7);

struct Case {
  int64_t width, group, count;
  std::vector<uint8_t> tile;
  std::vector<double> weights;  // [16, width]
  std::vector<float> x;         // [count, width]
  std::vector<CodedRow> rows;
  std::vector<int8_t> codes;
  std::vector<int32_t> sums;

  Case(int64_t width_, int64_t group_, int64_t count_)
      : width(width_), group(group_), count(count_), tile(size_t(tile_bytes(width, group))), weights(size_t(kTile * width)) {
    const auto scale_at = reinterpret_cast<uint16_t*>(tile.data() + kTile * 4);
    const auto codes_at = tile.data() + kTile * 4 + scales_bytes(width, group);
    std::vector<float> row_sums(kTile, 0.0f);
    for (int64_t n = 0; n < kTile; ++n) {
      double row_sum = 0;
      for (int64_t k = 0; k < width; ++k) {
        uint16_t& bits = scale_at[k / group * kTile + n];
        if (k % group == 0) bits = uint16_t(0x3c00 + random_bits() % 256);
        const uint32_t wide = uint32_t(bits) << 16;
        float scale;
        std::memcpy(&scale, &wide, 4);
        const int code = n == 0 ? 15 : int(random_bits() % 16), in_block = int(k % kCodes), high = in_block / 16;
        codes_at[k / kCodes * 256 + in_block % 16 / 4 * 64 + n * 4 + in_block % 4] |= uint8_t(code << (4 * high));
        weights[size_t(n * width + k)] = double(code - 8) * scale;
        row_sum += weights[size_t(n * width + k)];
      }
      row_sums[size_t(n)] = float(row_sum);
    }
    std::memcpy(tile.data(), row_sums.data(), kTile * 4);
    std::normal_distribution<float> normal(0.3f);
    x.resize(size_t(count * width)), codes.resize(x.size()), sums.resize(x.size() / kCodes), rows.resize(size_t(count));
    for (float& value : x) value = normal(random_bits);
    for (int64_t k = 0; k < width; ++k) x[size_t(k)] = 9;  // codes of 127 against codes of 15: the largest sums
    for (int64_t r = 0; r < count; ++r) {
      rows[size_t(r)] = code_row(&x[size_t(r * width)], width, &codes[size_t(r * width)], &sums[size_t(r * width / kCodes)]);
    }
  }

  // Largest error over the largest value, of the product with the rounded rows; 2 if a row depends on the others.
  double error() const {
    std::vector<float> out(size_t(count * kTile)), alone(kTile);
    multiply_tile(tile.data(), width, group, rows.data(), count, out.data());
    double worst = 0, most = 0;
    for (int64_t r = 0; r < count; ++r) {
      multiply_tile(tile.data(), width, group, &rows[size_t(r)], 1, alone.data());
      if (std::memcmp(alone.data(), &out[size_t(r * kTile)], kTile * 4) != 0) return 2;
      for (int64_t n = 0; n < kTile; ++n) {
        double y = 0;
        for (int64_t k = 0; k < width; ++k) {
          const double value = (codes[size_t(r * width + k)] - rows[size_t(r)].zero) * double(rows[size_t(r)].scale);
          if (std::fabs(value - x[size_t(r * width + k)]) > 0.51 * rows[size_t(r)].scale) return 3;  // half a step
          y += value * weights[size_t(n * width + k)];
        }
        worst = std::max(worst, std::fabs(out[size_t(r * kTile + n)] - y)), most = std::max(most, std::fabs(y));
      }
    }
    return worst / most;
  }
};

double worst_error() {
  double worst = 0;
  for (const int64_t group : {32, 64, 96}) {
    for (const int64_t count : {1, 2, 3, 4, 5, 6, 7, 16}) {
      for (const int64_t groups : {1, 2, 5}) worst = std::max(worst, Case(groups * group, group, count).error());
    }
  }
  return worst;
}

double seconds(int times, const Case& c, const std::vector<uint8_t>& tiles, std::vector<float>& out) {
  const int64_t step = tile_bytes(c.width, c.group);
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < times; ++i) {
    for (size_t at = 0; at < tiles.size(); at += size_t(step)) {
      multiply_tile(tiles.data() + at, c.width, c.group, c.rows.data(), c.count, out.data());
    }
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / times;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "speed") == 0) {
    for (const int64_t count : {1, 4, 16}) {
      const Case c(4096, 32, count);
      std::vector<uint8_t> tiles;
      for (int i = 0; i < 2000; ++i) tiles.insert(tiles.end(), c.tile.begin(), c.tile.end());
      std::vector<float> out(size_t(count * kTile));
      const double took = seconds(3, c, tiles, out);
      std::printf("%d rows: %.1f GB/s, %.1f multiply-adds per ns\n", int(count), double(tiles.size()) / took / 1e9,
          2000.0 * double(count * kTile * c.width) / took / 1e9);
    }
    return 0;
  }
  double worst = 0;
  for (const char* isa : {static_cast<const char*>(nullptr), "avx512", "avx2", "baseline"}) {
    use_tiles(isa);
    const double error = worst_error();
    std::printf("%s: largest relative error %.1e\n", isa ? isa : "best", error);
    worst = std::max(worst, error);
  }
  return worst < 1e-5 ? 0 : 1;
}
