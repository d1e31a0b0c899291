// From a picture to phi-3-vision's views, and from their features to rows for the projector: phi3mobile/models/vision.py and
// resample.py, to the bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace phi3mobile {

constexpr int64_t kSide = 336, kPatches = 24 * 24;  // of a view
constexpr int64_t kViewValues = 3 * kSide * kSide;

// A picture of eight bits as it is to be seen, in somebody's memory.
struct Pixels {
  const uint8_t* data;         // the upper left pixel
  int64_t width, height;       // 1 or more
  std::ptrdiff_t right, down;  // bytes from a pixel to its neighbours
  int channels;                // 3: red, green, blue; 4: with alpha, not multiplied in, which lies over white

  // A row as RGB, 3 * width bytes.
  void row(int64_t y, uint8_t* to) const;
  Pixels turned() const { return {data, height, width, down, right, channels}; }  // its axes swapped
};

// stride: bytes from row to row; 0: rows have no gap. orientation: EXIF's, 1 (as it lies) to 8. InputError: null, zero or too
// many pixels, rows that overlap, another number of channels or orientation.
Pixels upright(const uint8_t* data, int64_t width, int64_t height, int64_t stride, int channels, int orientation);

struct CropPlan {
  int64_t resized[2], padded[2];  // width, height in pixels
  int64_t grid[2];                // crops: across, down

  int64_t views() const { return 1 + grid[0] * grid[1]; }
  int64_t tokens() const;  // positions in the prompt
};

// What becomes of a picture of so many pixels with at most num_crops crops. InputError: a size or num_crops below 1, a picture
// that would be less than a pixel narrow.
CropPlan plan_crops(int64_t width, int64_t height, int64_t num_crops);

// The resized picture in the middle of a white one: RGB of plan.padded.
std::vector<uint8_t> fit(const Pixels& picture, const CropPlan& plan);

// View `number` of a fitted picture, float32 [3, 336, 336], normalised: 0 the whole, then the crops row by row.
void view(const std::vector<uint8_t>& fitted, const CropPlan& plan, int64_t number, float* to);

// `count` of a picture's rows from `start` on, float32 [count, 4 * width]. features: patches [views, 576, width]; separators:
// [2, 4 * width], after a row of tokens and before the whole.
void merge(const float* features, const CropPlan& plan, int64_t width, const float* separators, int64_t start, int64_t count,
    float* to);

}  // namespace phi3mobile
