#include "session/resample.h"

#include <algorithm>
#include <cmath>

namespace phi3mobile {

namespace {

constexpr int kBits = 22;  // of a weight: 255 << 22 still fits into int32

// Lines of the output: each is a sum of `taps` input lines from `first` on.
struct Weights {
  std::vector<int64_t> first;
  std::vector<int64_t> taps;
  std::vector<int32_t> values;  // [lines, most]
  int64_t most = 0;

  const int32_t* of(int64_t line) const { return values.data() + line * most; }
};

// float64 in Pillow's order of operations, the sum of weights one by one: other orders differ in the last bit.
Weights weights_of(int64_t length, int64_t count) {
  const double scale = double(length) / double(count), support = std::max(scale, 1.0);
  Weights found;
  for (int64_t i = 0; i < count; ++i) {
    const double centre = (double(i) + 0.5) * scale;
    const int64_t first = std::max<int64_t>(int64_t(centre - support + 0.5), 0);
    found.first.push_back(first);
    found.taps.push_back(std::min(int64_t(centre + support + 0.5), length) - first);
    found.most = std::max(found.most, found.taps.back());
  }
  found.values.resize(size_t(count * found.most));
  std::vector<double> line(size_t(found.most), 0.0);
  for (int64_t i = 0; i < count; ++i) {
    const double centre = (double(i) + 0.5) * scale;
    double sum = 0;
    for (int64_t tap = 0; tap < found.taps[size_t(i)]; ++tap) {
      const double distance = std::abs((double(found.first[size_t(i)] + tap) - centre + 0.5) * (1.0 / support));
      line[size_t(tap)] = distance < 1.0 ? 1.0 - distance : 0.0;
      sum += line[size_t(tap)];
    }
    for (int64_t tap = 0; tap < found.taps[size_t(i)]; ++tap) {
      found.values[size_t(i * found.most + tap)] = int32_t(0.5 + line[size_t(tap)] / sum * double(1 << kBits));
    }
  }
  return found;
}

// Each row of the picture, `width` pixels wide.
std::vector<uint8_t> narrowed(const Pixels& picture, int64_t width) {
  std::vector<uint8_t> out(size_t(3 * width * picture.height));
  if (width == picture.width) {
    for (int64_t y = 0; y < picture.height; ++y) picture.row(y, out.data() + 3 * width * y);
    return out;
  }
  const Weights weights = weights_of(picture.width, width);
  std::vector<uint8_t> row(size_t(3 * picture.width));
  for (int64_t y = 0; y < picture.height; ++y) {
    picture.row(y, row.data());
    uint8_t* to = out.data() + 3 * width * y;
    for (int64_t x = 0; x < width; ++x) {
      const uint8_t* from = row.data() + 3 * weights.first[size_t(x)];
      const int32_t* weight = weights.of(x);
      int32_t red = 1 << (kBits - 1), green = red, blue = red;
      for (int64_t tap = 0; tap < weights.taps[size_t(x)]; ++tap, from += 3) {
        red += from[0] * weight[tap];
        green += from[1] * weight[tap];
        blue += from[2] * weight[tap];
      }
      *to++ = uint8_t(red >> kBits);
      *to++ = uint8_t(green >> kBits);
      *to++ = uint8_t(blue >> kBits);
    }
  }
  return out;
}

}  // namespace

std::vector<uint8_t> resized(const Pixels& picture, int64_t width, int64_t height) {
  std::vector<uint8_t> narrow = narrowed(picture, width);
  if (height == picture.height) return narrow;
  const Weights weights = weights_of(picture.height, height);
  const size_t line = size_t(3 * width);
  std::vector<uint8_t> out(line * size_t(height));
  std::vector<int32_t> total(line);
  for (int64_t y = 0; y < height; ++y) {
    std::fill(total.begin(), total.end(), 1 << (kBits - 1));
    for (int64_t tap = 0; tap < weights.taps[size_t(y)]; ++tap) {
      const uint8_t* from = narrow.data() + line * size_t(weights.first[size_t(y)] + tap);
      const int32_t weight = weights.of(y)[tap];
      for (size_t i = 0; i < line; ++i) total[i] += from[i] * weight;
    }
    uint8_t* to = out.data() + line * size_t(y);
    for (size_t i = 0; i < line; ++i) to[i] = uint8_t(total[i] >> kBits);
  }
  return out;
}

}  // namespace phi3mobile
