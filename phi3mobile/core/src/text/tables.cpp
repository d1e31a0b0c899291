#include "text/tables.h"

#include <cstring>

namespace phi3mobile {

namespace {

constexpr uint64_t kOdd = 0x9E3779B97F4A7C15;

uint64_t mixed(uint64_t value) {
  value *= kOdd;
  return value ^ value >> 29;
}

uint32_t hash_of(std::string_view text) {
  uint64_t hash = text.size();
  size_t at = 0;
  for (; at + 8 <= text.size(); at += 8) {
    uint64_t part;
    std::memcpy(&part, text.data() + at, 8);
    hash = mixed(hash ^ part);
  }
  uint64_t rest = 0;
  for (; at < text.size(); ++at) rest = rest << 8 | uint8_t(text[at]);
  return uint32_t(mixed(mixed(hash ^ rest)) >> 16);
}

}  // namespace

uint32_t Texts::find(std::string_view text) const { return slots_[slot_of(text, hash_of(text))].number; }

uint32_t Texts::add(std::string_view text) {
  const uint32_t hash = hash_of(text);
  size_t at = slot_of(text, hash);
  if (slots_[at].number != kNone) return slots_[at].number;
  if (2 * (size() + 1) > slots_.size()) {
    grow();
    at = slot_of(text, hash);
  }
  slots_[at] = {hash, size()};
  bytes_ += text;
  ends_.push_back(bytes_.size());
  return size() - 1;
}

// The slot that holds the text, or the free one where it belongs.
size_t Texts::slot_of(std::string_view text, uint32_t hash) const {
  size_t at = hash & (slots_.size() - 1);
  while (slots_[at].number != kNone && (slots_[at].hash != hash || (*this)[slots_[at].number] != text)) {
    at = (at + 1) & (slots_.size() - 1);
  }
  return at;
}

void Texts::grow() {
  std::vector<Slot> old(2 * slots_.size());
  old.swap(slots_);
  for (const Slot& slot : old) {
    if (slot.number == kNone) continue;
    size_t at = slot.hash & (slots_.size() - 1);
    while (slots_[at].number != kNone) at = (at + 1) & (slots_.size() - 1);
    slots_[at] = slot;
  }
}

void Merges::reserve(size_t count) {
  size_t size = 2;
  while (size < 2 * count) size *= 2;
  slots_.assign(size, Slot());
}

void Merges::add(int32_t left, int32_t right, Merge merge) {
  const uint64_t pair = uint64_t(uint32_t(left)) << 32 | uint32_t(right);
  Slot& slot = slots_[slot_of(pair)];
  if (slot.pair != pair) slot = {pair, merge};
}

const Merge* Merges::find(int32_t left, int32_t right) const {
  const uint64_t pair = uint64_t(uint32_t(left)) << 32 | uint32_t(right);
  const Slot& slot = slots_[slot_of(pair)];
  return slot.pair == pair ? &slot.merge : nullptr;
}

size_t Merges::slot_of(uint64_t pair) const {
  size_t at = mixed(pair) & (slots_.size() - 1);
  while (slots_[at].pair != pair && slots_[at].pair != uint64_t(-1)) at = (at + 1) & (slots_.size() - 1);
  return at;
}

bool Words::find(std::string_view word, const int32_t** ids, size_t* count) const {
  if (word.size() > kLongest) return false;
  const uint32_t number = words_.find(word);
  if (number == Texts::kNone) return false;
  *ids = ids_.data() + ends_[number];
  *count = ends_[number + 1] - ends_[number];
  return true;
}

void Words::add(std::string_view word, const int32_t* ids, size_t count) {
  if (word.size() > kLongest || words_.size() == kMost || words_.add(word) + 1 != ends_.size()) return;
  ids_.insert(ids_.end(), ids, ids + count);
  ends_.push_back(ids_.size());
}

}  // namespace phi3mobile
