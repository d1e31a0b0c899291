// Bilinear, antialiased resizing of RGB pictures with the bits of Pillow's: phi3mobile/models/resample.py.
#pragma once

#include "session/vision.h"

#include <vector>

namespace phi3mobile {

// RGB of width * height pixels: first along rows, rounded to eight bits, then along columns.
std::vector<uint8_t> resized(const Pixels& picture, int64_t width, int64_t height);

}  // namespace phi3mobile
