// What a session needs of an image encoder with its projector: phi3mobile/engines/tower.py.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace phi3mobile {

struct TowerInfo {
  int64_t num_crops = 0;          // of a picture at most, where nobody asks for another number
  int64_t hidden = 0;             // of the decoder
  int64_t width = 0;              // of a patch
  int64_t rows = 0;               // of one call of `project`
  std::vector<float> separators;  // [2, 4 * width]: after a row of tokens, before the whole
  std::string files;              // hashes of what it is computed from
};

class Tower {
 public:
  explicit Tower(TowerInfo info) : info(std::move(info)) {}
  virtual ~Tower() = default;
  Tower(const Tower&) = delete;
  Tower& operator=(const Tower&) = delete;

  // Patches float32 [576, width] of one view float32 [3, 336, 336]. Throws if it fails, as does the other.
  virtual void encode(const float* view, float* patches) = 0;
  // Embeddings float32 [count, hidden] of merged rows float32 [count, 4 * width].
  virtual void project(const float* merged, int64_t count, float* embedded) = 0;

  const TowerInfo info;
};

}  // namespace phi3mobile
