#include "expert_file.h"
#include "large_pages.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace phi3mobile {
namespace {

constexpr int kReaders = 2;       // reads in flight: one more gains nothing on flash, one less loses a quarter
constexpr float kAgeing = 0.97f;  // of a score, each time its layer runs
constexpr int kAsked = 1, kThere = 2, kFailed = 3;

}  // namespace

std::unique_ptr<ExpertFile> ExpertFile::open(const std::string& path, uint64_t budget, int used, std::string* error) {
  std::unique_ptr<ExpertFile> made(new ExpertFile);
  ExpertFile& f = *made;
  f.path_ = path;
  f.file_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (f.file_ < 0) {
    *error = path + " can't be opened: " + std::strerror(errno);
    return nullptr;
  }
  *error = read_header(path, f.file_, &f.header_, &f.sums_);
  if (!error->empty()) return nullptr;
  const ExpertHeader& h = f.header_;
  f.data_at_ = padded(sizeof h + f.sums_.size() * 8);
  f.part2_at_ = padded(h.bytes13);
  f.stride_ = f.slot_bytes_ = padded(h.bytes13) + padded(h.bytes2);
  const uint64_t records = uint64_t(h.layers) * h.experts;
  f.size_ = f.data_at_ + records * f.stride_;
  f.scores_.assign(h.layers, std::vector<float>(h.experts, 0.0f));
  f.counted_.bytes_all = int64_t(records * f.stride_), f.counted_.slot_bytes = int64_t(f.slot_bytes_);

  if (budget == 0 || budget >= records * f.stride_ ? !f.map(error) : !f.read_into(budget, used, error)) return nullptr;
  return made;
}

// The whole file. False, and one line in error.
bool ExpertFile::map(std::string* error) {
  void* at = mmap(nullptr, size_t(size_), PROT_READ, MAP_SHARED, file_, 0);
  if (at == MAP_FAILED) {
    *error = path_ + " can't be mapped: " + std::strerror(errno);
    return false;
  }
  want_large_pages(at, size_t(size_));
  mapped_ = static_cast<const uint8_t*>(at);
  checked_.assign(sums_.size(), 0);
  counted_.mapped = 1;
  counted_.slots = int64_t(sums_.size() / 2);
  return true;
}

// Slots of so many bytes, and who reads into them. False, and one line in error.
bool ExpertFile::read_into(uint64_t budget, int used, std::string* error) {
  const uint64_t slots = budget / slot_bytes_, least = std::max<uint64_t>(uint64_t(used), kReaders), records = sums_.size() / 2;
  if (slots < least) {
    *error = "experts_memory of " + std::to_string(budget) + " bytes is too small: a token needs " + std::to_string(least) +
             " experts of a layer at once, at least " + std::to_string(least * slot_bytes_) + " bytes";
    return false;
  }
  // Past what each layer can use, slots would idle; the shared ones serve whichever layer runs.
  const uint64_t own = std::min<uint64_t>(slots - least, records);
  layers_.resize(header_.layers);
  for (uint32_t layer = 0; layer < header_.layers; ++layer)
    layers_[layer].resize(own / header_.layers + (layer < own % header_.layers));
  shared_.resize(least);
  const auto give = [&](Slot& slot) {
    void* memory = nullptr;
    if (posix_memalign(&memory, kAlign, size_t(slot_bytes_ + kAlign)) != 0) return false;
    memory_.push_back(memory);
    slot.memory = static_cast<uint8_t*>(memory);
    return true;
  };
  bool enough = true;
  for (auto& layer : layers_) {
    for (Slot& slot : layer) enough = enough && give(slot);
  }
  for (Slot& slot : shared_) enough = enough && give(slot);
  if (!enough) {
    *error = "no memory for " + std::to_string(slots) + " experts";
    return false;
  }
  counted_.slots = int64_t(own + least);
  // Past the page cache where the system lets us: these bytes are kept here or not at all.
#if defined(O_DIRECT)
  const int direct = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
  if (direct >= 0) {
    close(file_);
    file_ = direct;
  }
#elif defined(F_NOCACHE)
  fcntl(file_, F_NOCACHE, 1);
#endif
  for (int i = 0; i < kReaders; ++i) readers_.emplace_back([this] { work(); });
  return true;
}

ExpertFile::~ExpertFile() {
  {
    const std::lock_guard<std::mutex> hold(lock_);
    stop_ = true;
  }
  work_ready_.notify_all();
  for (auto& reader : readers_) reader.join();
  if (mapped_) munmap(const_cast<uint8_t*>(mapped_), size_t(size_));
  if (file_ >= 0) close(file_);
  for (void* memory : memory_) std::free(memory);
}

void ExpertFile::work() {
  std::unique_lock<std::mutex> hold(lock_);
  for (;;) {
    work_ready_.wait(hold, [&] { return stop_ || !jobs_.empty(); });
    if (stop_) return;
    const Job job = jobs_.front();
    jobs_.pop_front();
    hold.unlock();
    std::string error;
    read(job, &error);
    hold.lock();
    job.slot->state[job.part] = error.empty() ? kThere : kFailed;
    if (!error.empty() && failed_.empty()) failed_ = error;
    counted_.bytes_read += int64_t(padded(part_bytes(job.part)));
    part_ready_.notify_all();
  }
}

void ExpertFile::read(const Job& job, std::string* error) {
  uint8_t* to = job.slot->memory + (job.part ? part2_at_ : 0);
  const std::string where =
      "layer " + std::to_string(job.record / header_.experts) + ", expert " + std::to_string(job.record % header_.experts);
  if (!read_all(file_, to, padded(part_bytes(job.part)), offset(job.record, job.part))) {
    *error = path_ + " can't be read at " + where + ": it is cut off or the disk fails";
  } else if (checksum(to, part_bytes(job.part)) != sums_[2 * job.record + job.part]) {
    *error = path_ + " is damaged at " + where + ": the checksum does not match";
  }
}

ExpertFile::Slot* ExpertFile::find(int expert) {
  for (Slot& slot : layers_[layer_]) {
    if (slot.expert == expert) return &slot;
  }
  for (Slot& slot : shared_) {
    if (slot.expert == expert) return &slot;
  }
  return nullptr;
}

void ExpertFile::begin(int layer, const std::vector<int>& needed) {
  layer_ = layer;
  needed_ = needed;
  ready_.clear(), waiting_.clear(), asked_.clear();
  error_.clear();
  auto& scores = scores_[layer];
  for (float& score : scores) score *= kAgeing;
  for (const int expert : needed) scores[expert] += 1.0f;
  if (mapped_) {
    ready_ = needed;
    counted_.hits += int64_t(needed.size());
    return;
  }
  std::unique_lock<std::mutex> hold(lock_);
  failed_.clear();
  for (Slot& slot : shared_) slot.expert = -1;
  for (Slot& slot : layers_[layer]) {  // what failed before is read again
    if (slot.state[0] != kThere || slot.state[1] != kThere) slot.expert = -1;
  }
  for (const int expert : needed) {
    const bool there = find(expert) != nullptr;
    (there ? ready_ : waiting_).push_back(expert);
    ++(there ? counted_.hits : counted_.misses);
  }
  hold.unlock();
  while (!waiting_.empty() && start_read(waiting_.front())) waiting_.erase(waiting_.begin());
}

// Asks for an expert's parts. False: no slot is free now.
bool ExpertFile::start_read(int expert) {
  const std::lock_guard<std::mutex> hold(lock_);
  const auto& scores = scores_[layer_];
  const auto is_needed = [&](int e) { return std::find(needed_.begin(), needed_.end(), e) != needed_.end(); };
  Slot* chosen = nullptr;
  for (Slot& slot : layers_[layer_]) {
    if (slot.expert >= 0 && is_needed(slot.expert)) continue;
    const float own = slot.expert < 0 ? -1.0f : scores[slot.expert];
    const float best = !chosen ? 1e30f : chosen->expert < 0 ? -1.0f : scores[chosen->expert];
    if (own < best) chosen = &slot;
  }
  if (chosen && chosen->expert >= 0 && scores[chosen->expert] > scores[expert]) chosen = nullptr;  // it earns its place better
  if (!chosen) {
    for (Slot& slot : shared_) {
      if (slot.expert < 0) chosen = &slot;
    }
  }
  if (!chosen) return false;
  chosen->expert = expert;
  const int record = layer_ * int(header_.experts) + expert;
  for (int part = 0; part < 2; ++part) {
    chosen->state[part] = kAsked;
    jobs_.push_back({chosen, record, part});
  }
  asked_.push_back(expert);
  work_ready_.notify_all();
  return true;
}

std::vector<int> ExpertFile::next() {
  if (!ready_.empty()) return std::exchange(ready_, {});
  if (asked_.empty()) return {};
  const int expert = asked_.front();
  asked_.erase(asked_.begin());
  return {expert};
}

const void* ExpertFile::part(int expert, int which) {
  const int record = layer_ * int(header_.experts) + expert;
  if (mapped_) {
    const uint8_t* at = mapped_ + offset(record, which);
    uint8_t& checked = checked_[2 * size_t(record) + which];
    if (!checked) {
      if (checksum(at, part_bytes(which)) != sums_[2 * size_t(record) + which]) {
        error_ = path_ + " is damaged at layer " + std::to_string(layer_) + ", expert " + std::to_string(expert) +
                 ": the checksum does not match";
        return nullptr;
      }
      checked = 1;
    }
    return at;
  }
  std::unique_lock<std::mutex> hold(lock_);
  Slot* slot = find(expert);
  if (slot->state[which] == kAsked) {
    const auto start = std::chrono::steady_clock::now();
    part_ready_.wait(hold, [&] { return slot->state[which] != kAsked; });
    const auto waited = std::chrono::steady_clock::now() - start;
    counted_.stall_us += std::chrono::duration_cast<std::chrono::microseconds>(waited).count();
  }
  if (slot->state[which] != kThere) {
    error_ = failed_;
    // Nothing of this call may still be written when the next one begins.
    for (const Job& job : jobs_) job.slot->state[job.part] = kFailed;
    jobs_.clear();
    const auto quiet = [](const Slot& s) { return s.state[0] != kAsked && s.state[1] != kAsked; };
    part_ready_.wait(hold, [&] {
      const auto& own = layers_[layer_];
      return std::all_of(own.begin(), own.end(), quiet) && std::all_of(shared_.begin(), shared_.end(), quiet);
    });
    return nullptr;
  }
  return slot->memory + (which ? part2_at_ : 0);
}

const void* ExpertFile::w13(int expert) { return part(expert, 0); }
const void* ExpertFile::w2(int expert) { return part(expert, 1); }

void ExpertFile::done(int expert) {
  if (mapped_) return;
  {
    const std::lock_guard<std::mutex> hold(lock_);
    for (Slot& slot : shared_) {
      if (slot.expert == expert) slot.expert = -1;
    }
  }
  while (!waiting_.empty() && start_read(waiting_.front())) waiting_.erase(waiting_.begin());
}

ExpertStatistics ExpertFile::statistics() const {
  const std::lock_guard<std::mutex> hold(lock_);
  return counted_;
}

}  // namespace phi3mobile
