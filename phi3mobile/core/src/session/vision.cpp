#include "session/vision.h"

#include "base/error.h"
#include "session/resample.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>

namespace phi3mobile {

namespace {

constexpr double kMean[] = {0.48145466, 0.4578275, 0.40821073};  // CLIP's, of red, green, blue
constexpr double kStd[] = {0.26862954, 0.26130258, 0.27577711};
constexpr int64_t kMaxCrops = 1024;          // 148k tokens: more than any context
constexpr int64_t kMaxPixels = 128000000;    // a phone's 108 megapixels pass
constexpr int64_t kTile = 12, kAcross = 24;  // tokens and patches of a view's side

std::string sized(int64_t width, int64_t height) { return std::to_string(width) + " × " + std::to_string(height) + " pixels"; }

// What each of 256 values of a channel becomes: float32 in the reference's order of operations.
using Levels = std::array<std::array<float, 256>, 3>;

const Levels& levels() {
  static const Levels found = [] {
    Levels made;
    for (size_t channel = 0; channel < 3; ++channel) {
      for (size_t value = 0; value < 256; ++value) {
        made[channel][value] = (float(value) / 255.0f - float(kMean[channel])) / float(kStd[channel]);
      }
    }
    return made;
  }();
  return found;
}

// Offsets and weights of the pixels that one pixel of the whole view is made of, along one axis.
std::vector<std::pair<int64_t, double>> taps(int64_t factor) {
  const int64_t middle = factor / 2;
  if (factor % 2) return {{middle, 1.0}};
  return {{middle - 2, -3.0 / 32}, {middle - 1, 19.0 / 32}, {middle, 19.0 / 32}, {middle + 1, -3.0 / 32}};
}

// torch's bicubic interpolation without antialiasing by whole factors, which the model was trained on.
void whole(const std::vector<uint8_t>& fitted, const CropPlan& plan, float* to) {
  const int64_t width = plan.padded[0], height = plan.padded[1], across = plan.grid[0], down = plan.grid[1];
  const Levels& level = levels();
  std::fill(to, to + kViewValues, 0.0f);
  for (const auto& [y, y_weight] : taps(down)) {
    for (const auto& [x, x_weight] : taps(across)) {
      const float weight = float(y_weight * x_weight);
      for (int64_t i = 0; i < kSide; ++i) {
        const uint8_t* row = fitted.data() + 3 * width * std::clamp<int64_t>(down * i + y, 0, height - 1);
        for (int64_t j = 0; j < kSide; ++j) {
          const uint8_t* pixel = row + 3 * std::clamp<int64_t>(across * j + x, 0, width - 1);
          for (int64_t c = 0; c < 3; ++c) to[(c * kSide + i) * kSide + j] += weight * level[size_t(c)][pixel[c]];
        }
      }
    }
  }
}

}  // namespace

void Pixels::row(int64_t y, uint8_t* to) const {
  const uint8_t* from = data + y * down;
  if (channels == 3 && right == 3) {
    std::memcpy(to, from, size_t(3 * width));
    return;
  }
  for (int64_t x = 0; x < width; ++x, from += right, to += 3) {
    const int alpha = channels == 4 ? from[3] : 255;
    for (int c = 0; c < 3; ++c) to[c] = alpha == 255 ? from[c] : uint8_t((from[c] * alpha + 255 * (255 - alpha) + 127) / 255);
  }
}

Pixels upright(const uint8_t* data, int64_t width, int64_t height, int64_t stride, int channels, int orientation) {
  if (!data) throw InputError("the pixels are null: give some");
  if (width < 1 || height < 1)
    throw InputError("the picture has " + sized(width, height) + "; give one with at least one pixel each way");
  if (width > kMaxPixels || height > kMaxPixels || width * height > kMaxPixels) {
    char pixels[32];
    std::snprintf(pixels, sizeof pixels, "%.0f", double(width) * double(height) / 1e6);
    throw InputError("the picture has " + std::string(pixels) + " megapixels, at most 128 are read: make it smaller");
  }
  if (channels != 3 && channels != 4)
    throw InputError("channels is " + std::to_string(channels) + "; it is 3 (RGB) or 4 (RGBA)");
  if (stride == 0) stride = channels * width;
  if (stride < channels * width) {
    throw InputError("stride is " + std::to_string(stride) + "; a row has " + std::to_string(channels * width) + " bytes");
  }
  if (orientation < 1 || orientation > 8)
    throw InputError("orientation is " + std::to_string(orientation) + "; EXIF's are 1 (as it lies) to 8");
  Pixels seen{data, width, height, channels, std::ptrdiff_t(stride), channels};
  if (orientation >= 5) seen = seen.turned();
  if (orientation == 3 || orientation == 4 || orientation >= 7) {
    seen.data += (seen.height - 1) * seen.down;
    seen.down = -seen.down;
  }
  if (orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7) {
    seen.data += (seen.width - 1) * seen.right;
    seen.right = -seen.right;
  }
  return seen;
}

int64_t CropPlan::tokens() const { return kTile * grid[1] * (kTile * grid[0] + 1) + 1 + kTile * (kTile + 1); }

CropPlan plan_crops(int64_t width, int64_t height, int64_t num_crops) {
  if (num_crops < 1 || num_crops > kMaxCrops) {
    throw InputError("num_crops " + std::to_string(num_crops) + ": give 1 to " + std::to_string(kMaxCrops) +
                     " (4 is enough for most photos, 16 for small print)");
  }
  if (width < 1 || height < 1) {
    throw InputError("a picture of " + sized(width, height) + ": it must have at least one pixel each way");
  }
  // Both divisions in float64 and truncated, as the reference does.
  const double ratio = double(std::max(width, height)) / double(std::min(width, height));
  int64_t across = 1;
  while (double(across + 1) * std::ceil(double(across + 1) / ratio) <= double(num_crops)) ++across;
  const int64_t length = kSide * across, narrow = int64_t(double(length) / ratio);
  if (narrow < 1) {
    throw InputError("a picture of " + sized(width, height) + " is too narrow: with num_crops " + std::to_string(num_crops) +
                     " the long side may be " + std::to_string(kSide * num_crops) + " times the short one; cut it into parts");
  }
  const int64_t down = (narrow + kSide - 1) / kSide;
  if (width < height) return {{narrow, length}, {kSide * down, length}, {down, across}};
  return {{length, narrow}, {length, kSide * down}, {across, down}};
}

std::vector<uint8_t> fit(const Pixels& picture, const CropPlan& plan) {
  // A tall one is resized on its side: values are rounded after the first axis, which in the reference is the longer one.
  const bool tall = picture.height > picture.width;
  const auto [narrow, length] = std::minmax(plan.resized[0], plan.resized[1]);
  const std::vector<uint8_t> shown = resized(tall ? picture.turned() : picture, length, narrow);
  std::vector<uint8_t> canvas(size_t(3 * plan.padded[0] * plan.padded[1]), 255);
  const int64_t left = (plan.padded[0] - plan.resized[0]) / 2, top = (plan.padded[1] - plan.resized[1]) / 2;
  const int64_t right = tall ? 3 * length : 3, down = tall ? 3 : 3 * length;  // in `shown`
  const Pixels turned{shown.data(), plan.resized[0], plan.resized[1], std::ptrdiff_t(right), std::ptrdiff_t(down), 3};
  for (int64_t y = 0; y < turned.height; ++y) turned.row(y, canvas.data() + 3 * (plan.padded[0] * (top + y) + left));
  return canvas;
}

void view(const std::vector<uint8_t>& fitted, const CropPlan& plan, int64_t number, float* to) {
  if (number == 0) return whole(fitted, plan, to);
  const int64_t crop = number - 1, row = crop / plan.grid[0], column = crop % plan.grid[0];
  const Levels& level = levels();
  for (int64_t i = 0; i < kSide; ++i) {
    const uint8_t* pixel = fitted.data() + 3 * (plan.padded[0] * (kSide * row + i) + kSide * column);
    for (int64_t j = 0; j < kSide; ++j, pixel += 3) {
      for (int64_t c = 0; c < 3; ++c) to[(c * kSide + i) * kSide + j] = level[size_t(c)][pixel[c]];
    }
  }
}

void merge(const float* features, const CropPlan& plan, int64_t width, const float* separators, int64_t start, int64_t count,
    float* to) {
  const int64_t wide = 4 * width, of_crops = plan.tokens() - 1 - kTile * (kTile + 1);
  // A token of `views` views, `across` of them in a row, or the separator after its row.
  const auto token = [&](const float* views, int64_t across, int64_t index) {
    const int64_t line = index / (kTile * across + 1), column = index % (kTile * across + 1);
    if (column == kTile * across) return void(std::copy(separators, separators + wide, to));
    const float* patches = views + (line / kTile * across + column / kTile) * kPatches * width;
    const int64_t y = 2 * (line % kTile), x = 2 * (column % kTile);
    for (int64_t row = 0; row < 2; ++row) {
      const float* two = patches + (kAcross * (y + row) + x) * width;  // neighbours lie side by side
      std::copy(two, two + 2 * width, to + 2 * width * row);
    }
  };
  for (int64_t index = start; index < start + count; ++index, to += wide) {
    if (index < of_crops)
      token(features + kPatches * width, plan.grid[0], index);
    else if (index == of_crops)
      std::copy(separators + wide, separators + 2 * wide, to);
    else
      token(features, 1, index - of_crops - 1);
  }
}

}  // namespace phi3mobile
