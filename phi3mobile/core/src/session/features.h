// Rows of pictures in a folder, for other sessions and processes too: the files of phi3mobile/session/pictures.py, by the same
// names, each an array of numpy's float32 [tokens, hidden].
#pragma once

#include "session/tower.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace phi3mobile {

class Features {
 public:
  // runtime: what the tower is computed by.
  Features(std::string folder, const TowerInfo& tower, const std::string& runtime);

  // Of a picture, by the hash of its pixels; none: no file, or one that is cut short or no such array.
  std::optional<std::vector<float>> read(const std::string& picture, int64_t num_crops, int64_t tokens) const;
  // Whole or not at all; the folder is made. InputError: it can't be written.
  void write(const std::string& picture, int64_t num_crops, const std::vector<float>& rows) const;

 private:
  std::string path(const std::string& picture, int64_t num_crops) const;

  std::string folder_, tower_;
  int64_t hidden_;
};

}  // namespace phi3mobile
