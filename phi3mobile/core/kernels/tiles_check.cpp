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
  TileForm form;
  int64_t count;
  std::vector<uint8_t> tile;
  std::vector<double> weights, offsets;  // [16, width]; [16, groups]
  std::vector<float> x;                  // [count, width]
  std::vector<CodedRow> rows;
  std::vector<int8_t> codes;
  std::vector<int32_t> sums;

  Case(TileForm form_, int64_t count_)
      : form(form_), count(count_), tile(size_t(form.bytes())), weights(size_t(kTile * form.width)) {
    const auto put = [&](int64_t at, const auto& value) { std::memcpy(tile.data() + at, &value, sizeof value); };
    offsets.resize(size_t(kTile * form.groups()));
    for (int64_t n = 0; n < kTile; ++n) {
      double row_sum = 0;
      for (int64_t k = 0; k < form.width; ++k) {
        const double weight = form.bits == 8 ? fill8(n, k) : fill4(n, k);
        weights[size_t(n * form.width + k)] = weight, row_sum += weight;
      }
      put(4 * n, float(row_sum));
      if (!form.offsets) continue;
      const float step = 1e-3f * float(n + 1);
      put(form.steps_at() + 4 * n, step);
      for (int64_t g = 0; g < form.groups(); ++g) {
        const auto code = int8_t(n == 0 ? -127 : int(random_bits() % 255) - 127);
        put(form.offsets_at() + g / 2 * 2 * kTile + 2 * n + g % 2, code);
        offsets[size_t(n * form.groups() + g)] = double(code) * step;
      }
    }
    std::normal_distribution<float> normal(0.3f);
    x.resize(size_t(count * form.width)), codes.resize(x.size()), sums.resize(x.size() / kCodes), rows.resize(size_t(count));
    for (float& value : x) value = normal(random_bits);
    for (int64_t k = 0; k < form.width; ++k) x[size_t(k)] = 9;  // codes of 127 against the largest ones: the largest sums
    for (int64_t r = 0; r < count; ++r) {
      rows[size_t(r)] = code_row(
          &x[size_t(r * form.width)], form.width, &codes[size_t(r * form.width)], &sums[size_t(r * form.width / kCodes)]);
    }
  }

  // Writes a code, of a group's first one the scale, too; the weight.
  double fill4(int64_t n, int64_t k) {
    uint8_t* scale_at = tile.data() + form.scales_at() + 2 * (k / form.group * kTile + n);
    uint16_t bits = uint16_t(0x3c00 + random_bits() % 256);
    k % form.group == 0 ? std::memcpy(scale_at, &bits, 2) : std::memcpy(&bits, scale_at, 2);
    const uint32_t wide = uint32_t(bits) << 16;
    float scale;
    std::memcpy(&scale, &wide, 4);
    const int code = n == 0 ? 15 : int(random_bits() % 16), in_block = int(k % kCodes), high = in_block / 16;
    tile[size_t(form.codes_at() + k / kCodes * 256 + in_block % 16 / 4 * 64 + n * 4 + in_block % 4)] |=
        uint8_t(code << (4 * high));
    return double(code - 8) * scale;
  }

  double fill8(int64_t n, int64_t k) {
    const float scale = 1e-3f * float(n + 1);
    std::memcpy(tile.data() + form.scales_at() + 4 * n, &scale, 4);
    const auto code = int8_t(n == 0 ? -128 : n == 1 ? 127 : int(random_bits() % 255) - 127);
    tile[size_t(form.codes_at() + k / 4 * 64 + n * 4 + k % 4)] = uint8_t(code);
    return double(code) * scale;
  }

  // Largest error over the largest value, of the product with the rounded rows; 2 if a row depends on the others.
  double error() const {
    std::vector<float> out(size_t(count * kTile)), alone(kTile);
    multiply_tile(tile.data(), form, rows.data(), count, out.data());
    double worst = 0, most = 0;
    for (int64_t r = 0; r < count; ++r) {
      multiply_tile(tile.data(), form, &rows[size_t(r)], 1, alone.data());
      if (std::memcmp(alone.data(), &out[size_t(r * kTile)], kTile * 4) != 0) return 2;
      for (int64_t n = 0; n < kTile; ++n) {
        double y = 0;
        for (int64_t k = 0; k < form.width; ++k) {
          const size_t at = size_t(r * form.width + k);
          const double value = (codes[at] - rows[size_t(r)].zero) * double(rows[size_t(r)].scale);
          if (std::fabs(value - x[at]) > 0.51 * rows[size_t(r)].scale) return 3;  // half a step
          y += value * (weights[size_t(n * form.width + k)] + offsets[size_t(n * form.groups() + k / form.group)]);
        }
        worst = std::max(worst, std::fabs(out[size_t(r * kTile + n)] - y)), most = std::max(most, std::fabs(y));
      }
    }
    return worst / most;
  }
};

double worst_error() {
  double worst = 0;
  for (const int64_t count : {1, 2, 3, 4, 5, 6, 7, 16}) {
    for (const int64_t groups : {1, 2, 5}) {
      for (const int64_t group : {32, 64, 96}) {
        worst = std::max(worst, Case({groups * group, group}, count).error());
        worst = std::max(worst, Case({groups * group, group, 4, true}, count).error());
        worst = std::max(worst, Case({groups * group, groups * group, 8}, count).error());
      }
    }
  }
  return worst;
}

double seconds(int times, const Case& c, const std::vector<uint8_t>& tiles, std::vector<float>& out) {
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < times; ++i) {
    for (size_t at = 0; at < tiles.size(); at += size_t(c.form.bytes())) {
      multiply_tile(tiles.data() + at, c.form, c.rows.data(), c.count, out.data());
    }
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / times;
}

void speed(const char* name, TileForm form) {
  constexpr int64_t kTiles = 2000;
  for (const int64_t count : {1, 4, 48}) {
    const Case c(form, count);
    std::vector<uint8_t> tiles;
    for (int64_t i = 0; i < kTiles; ++i) tiles.insert(tiles.end(), c.tile.begin(), c.tile.end());
    std::vector<float> out(size_t(count * kTile));
    const double took = seconds(3, c, tiles, out);
    std::printf("%s, %d rows: %.1f GB/s, %.1f multiply-adds per ns\n", name, int(count), double(tiles.size()) / took / 1e9,
        double(kTiles * count * kTile * form.width) / took / 1e9);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "speed") == 0) {
    speed("4 bit", {3072, 32}), speed("4 bit with offsets", {3072, 32, 4, true}), speed("8 bit", {3072, 3072, 8});
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
