// Pictures for p3m, which decodes no photos: PPM and PGM of eight bits (`djpeg`, `pngtopnm`, `ffmpeg` and others write them).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace phi3mobile {

struct PpmPicture {
  int64_t width, height;
  std::vector<uint8_t> rgb;
};

// InputError: no such file, another format, more than eight bits, cut short.
PpmPicture read_ppm(const std::string& path);

}  // namespace phi3mobile
