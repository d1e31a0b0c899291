#include "session/features.h"

#include "base/error.h"
#include "base/files.h"
#include "base/sha256.h"

#include <algorithm>

namespace phi3mobile {

namespace {

constexpr size_t kAlign = 64, kDigits = 21;  // numpy's: of the whole header, and the room that it leaves an array to grow

// What np.save writes before float32 [tokens, hidden] in the order of C.
std::string npy_header(int64_t tokens, int64_t hidden) {
  const std::string rows = std::to_string(tokens);
  std::string text = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + rows + ", " + std::to_string(hidden) + "), }";
  text.append(kDigits - rows.size(), ' ');
  text.append(kAlign - (10 + text.size() + 1) % kAlign, ' ');
  text += '\n';
  return std::string("\x93NUMPY\x01\0", 8) + char(text.size() & 255) + char(text.size() >> 8) + text;
}

}  // namespace

Features::Features(std::string folder, const TowerInfo& tower, const std::string& runtime)
    : folder_(std::move(folder)), hidden_(tower.hidden) {
  if (folder_.empty()) throw InputError("the folder for features of pictures is empty; give its name");
  if (is_file(folder_)) throw InputError(folder_ + " is a file; give a folder for features of pictures");
  Sha256 hash;
  const std::string name = tower.files + " " + runtime;
  hash.add(name.data(), name.size());
  tower_ = hash.hex().substr(0, 32);
}

std::optional<std::vector<float>> Features::read(const std::string& picture, int64_t num_crops, int64_t tokens) const {
  const std::string file = path(picture, num_crops), header = npy_header(tokens, hidden_);
  if (!is_file(file)) return std::nullopt;
  try {
    InputFile in(file);
    std::string found(header.size(), '\0');
    in.exactly(found.data(), found.size());
    if (found != header) return std::nullopt;
    std::vector<float> rows(size_t(tokens * hidden_));
    in.exactly(rows.data(), rows.size() * sizeof(float));
    return rows;
  } catch (const InputError&) {
    return std::nullopt;  // computed again
  }
}

void Features::write(const std::string& picture, int64_t num_crops, const std::vector<float>& rows) const {
  const std::string header = npy_header(int64_t(rows.size()) / hidden_, hidden_);
  make_folders(folder_);
  OutputFile out(path(picture, num_crops));
  out.write(header.data(), header.size());
  out.write(rows.data(), rows.size() * sizeof(float));
  out.finish();
}

std::string Features::path(const std::string& picture, int64_t num_crops) const {
  return folder_ + "/" + tower_ + "-" + picture + "-" + std::to_string(num_crops) + ".npy";
}

}  // namespace phi3mobile
