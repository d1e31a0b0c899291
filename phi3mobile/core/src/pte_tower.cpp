#include "pte_tower.h"

#include "base/error.h"
#include "packed_file.h"
#include "session/vision.h"

#include <stdexcept>

namespace phi3mobile {

PteTower::PteTower(const Bundle& bundle, std::string cache)
    : Tower(*bundle.tower()), program_(bundle.path(bundle.vision()["program"].string())), cache_(std::move(cache)) {
  hash_ = bundle.manifest()["files"][bundle.vision()["program"].string()]["sha256"].string();
}

void PteTower::open() {
  if (model_) return;
  const PackedFile packed(cache_, hash_);
  char error[2000] = "";
  model_ = p3m_open(program_.c_str(), packed.opened(), 0, error, sizeof error);
  if (!model_) throw InputError(program_ + ": " + error);
  packed.keep();
}

void PteTower::run(const char* method, const float* given, std::initializer_list<int64_t> sizes, float* to, int64_t count) {
  open();
  const int64_t found = p3m_compute(model_, method, given, sizes.begin(), int(sizes.size()), to, count);
  if (found < 0) throw std::runtime_error(p3m_error(model_));
  if (found != count) {
    throw std::runtime_error(std::string(method) + " gave " + std::to_string(found) + " values, not " + std::to_string(count));
  }
}

void PteTower::encode(const float* view, float* patches) {
  run("encode", view, {1, 3, kSide, kSide}, patches, kPatches * info.width);
}

void PteTower::project(const float* merged, int64_t count, float* embedded) {
  run("project", merged, {count, 4 * info.width}, embedded, count * info.hidden);
}

}  // namespace phi3mobile
