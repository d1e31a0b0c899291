#include "session/pictures.h"

#include "base/error.h"
#include "base/sha256.h"

#include <algorithm>
#include <set>

namespace phi3mobile {

namespace {

constexpr int64_t kSpan = 1 << 20;  // ids of one picture: more than any has rows
constexpr size_t kKept = 8;         // pictures whose rows stay in memory: 31 MB each at most with 16 crops

int64_t index_of(int64_t id) { return (-1 - id) / kSpan; }
int64_t row_of(int64_t id) { return (-1 - id) % kSpan; }

// phi3mobile.pictures.picture_hash.
std::string hash_of(const Pixels& picture) {
  Sha256 hash;
  const std::string shape = "(" + std::to_string(picture.height) + ", " + std::to_string(picture.width) + ", 3)";
  hash.add(shape.data(), shape.size());
  std::vector<uint8_t> row(size_t(3 * picture.width));
  for (int64_t y = 0; y < picture.height; ++y) {
    picture.row(y, row.data());
    hash.add(row.data(), row.size());
  }
  return hash.hex();
}

}  // namespace

Pictures::Pictures(std::unique_ptr<Tower> tower, std::optional<int64_t> num_crops)
    : tower_(std::move(tower)), num_crops_(num_crops.value_or(tower_->info.num_crops)) {
  plan_crops(1, 1, num_crops_);  // throws for a number that can't be
}

int64_t Pictures::add(const Pixels& picture) {
  const CropPlan plan = plan_crops(picture.width, picture.height, num_crops_);
  const std::string hash = hash_of(picture);
  const auto found = known_.find(hash);
  if (found != known_.end()) return found->second;
  pictures_.push_back({hash, plan, fit(picture, plan)});
  return known_[hash] = count();
}

std::vector<int64_t> Pictures::ids(int64_t number) const {
  if (number < 1 || number > count()) {
    throw InputError("a message has the image " + std::to_string(number) + "; this session was given " +
                     std::to_string(count()) + ": p3m_session_picture gives each its number");
  }
  std::vector<int64_t> found(size_t(pictures_[size_t(number - 1)].plan.tokens()));
  for (size_t row = 0; row < found.size(); ++row) found[row] = -1 - kSpan * (number - 1) - int64_t(row);
  return found;
}

std::optional<int64_t> Pictures::smaller(const std::vector<int64_t>& ids, int64_t room) const {
  int64_t text = 0;
  std::vector<const CropPlan*> shown;
  for (const int64_t id : ids) {
    text += id >= 0;
    if (id < 0 && row_of(id) == 0) shown.push_back(&pictures_[size_t(index_of(id))].plan);
  }
  for (int64_t crops = num_crops_ - 1; crops > 0; --crops) {
    int64_t length = text;
    try {  // resized pictures have the proportions of those that were given
      for (const CropPlan* plan : shown) length += plan_crops(plan->resized[0], plan->resized[1], crops).tokens();
    } catch (const InputError&) {
      return std::nullopt;
    }
    if (length <= room) return crops;
  }
  return std::nullopt;
}

std::optional<std::string> Pictures::look(const int64_t* ids, int64_t count) {
  std::set<int64_t> shown;
  for (int64_t i = 0; i < count; ++i) {
    if (ids[i] < 0) shown.insert(index_of(ids[i]));
  }
  room_ = std::max(kKept, shown.size());
  for (int64_t i = 0; i < count; ++i) {  // in the order of the prompt
    if (ids[i] >= 0 || (i && ids[i - 1] < 0 && index_of(ids[i - 1]) == index_of(ids[i]))) continue;
    const int64_t index = index_of(ids[i]);
    if (kept(index)) continue;
    if (looking_.index == index) return see(), "";
    const Picture& picture = pictures_[size_t(index)];
    if (auto rows = features_ ? features_->read(picture.name, num_crops_, picture.plan.tokens()) : std::nullopt) {
      keep(index, std::move(*rows));
      continue;
    }
    const int64_t views = picture.plan.views();
    looking_ = {index, 0, std::vector<float>(size_t(views * kPatches * tower_->info.width))};
    return "looking at a picture (" + std::to_string(views) + " views)";
  }
  return std::nullopt;
}

const float* Pictures::rows(const int64_t* ids, int64_t count) {
  const size_t hidden = size_t(tower_->info.hidden);
  given_.resize(size_t(count) * hidden);
  for (int64_t i = 0; i < count; ++i) {
    const float* row = kept(index_of(ids[i]))->rows.data() + size_t(row_of(ids[i])) * hidden;
    std::copy(row, row + hidden, given_.data() + size_t(i) * hidden);
  }
  return given_.data();
}

// Of a picture, which is the last used one now; null: not known.
const Pictures::Kept* Pictures::kept(int64_t index) {
  const auto found = std::find_if(kept_.begin(), kept_.end(), [&](const Kept& one) { return one.index == index; });
  if (found == kept_.end()) return nullptr;
  kept_.splice(kept_.begin(), kept_, found);
  return &kept_.front();
}

// One view of the picture that is looked at; after the last its rows, which are kept. What fails may be tried again.
void Pictures::see() {
  const Picture& picture = pictures_[size_t(looking_.index)];
  if (looking_.views < picture.plan.views()) {
    std::vector<float> shown(size_t(kViewValues), 0.0f);
    view(picture.fitted, picture.plan, looking_.views, shown.data());
    tower_->encode(shown.data(), looking_.features.data() + looking_.views * kPatches * tower_->info.width);
    ++looking_.views;
    return;
  }
  std::vector<float> rows = projected(picture.plan);
  if (features_) features_->write(picture.name, num_crops_, rows);
  keep(looking_.index, std::move(rows));
  looking_ = {};
}

void Pictures::keep(int64_t index, std::vector<float> rows) {
  kept_.push_front({index, std::move(rows)});
  while (kept_.size() > room_) kept_.pop_back();
}

// float32 [tokens, hidden] of the features, as many rows at once as the tower takes.
std::vector<float> Pictures::projected(const CropPlan& plan) const {
  const TowerInfo& info = tower_->info;
  const int64_t tokens = plan.tokens(), most = std::min(info.rows, tokens);
  std::vector<float> rows(size_t(tokens * info.hidden)), merged(size_t(most * 4 * info.width));
  for (int64_t start = 0; start < tokens; start += most) {
    const int64_t count = std::min(most, tokens - start);
    merge(looking_.features.data(), plan, info.width, info.separators.data(), start, count, merged.data());
    tower_->project(merged.data(), count, rows.data() + start * info.hidden);
  }
  return rows;
}

}  // namespace phi3mobile
