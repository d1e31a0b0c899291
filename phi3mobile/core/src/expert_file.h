// A file of experts and the memory they are computed from: mapped where all fit, else read into slots.
#pragma once

#include "expert_format.h"

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace phi3mobile {

struct ExpertStatistics {
  int64_t hits, misses, bytes_read, stall_us, slots, mapped, bytes_all, slot_bytes;
};

class ExpertFile {
 public:
  // budget: bytes for experts; 0 or enough for all: the file is mapped. Null and one line in error.
  static std::unique_ptr<ExpertFile> open(const std::string& path, uint64_t budget, int used, std::string* error);
  ~ExpertFile();

  const ExpertHeader& header() const { return header_; }

  // The experts of one forward through a layer, ascending. Reads what is missing; `begin` forgets the call before.
  void begin(int layer, const std::vector<int>& needed);
  // The next experts to compute: all that are in memory, then one at a time as they come. Empty when all were given.
  std::vector<int> next();
  // Its parts, waiting until they are there; null and `error()` if that failed.
  const void* w13(int expert);
  const void* w2(int expert);
  // Computed: its slot may be taken.
  void done(int expert);

  const std::string& error() const { return error_; }
  ExpertStatistics statistics() const;

 private:
  struct Slot {
    uint8_t* memory = nullptr;
    int expert = -1;        // that it holds; of a shared slot, in this call
    int state[2] = {0, 0};  // of the parts: 0 nothing, 1 asked for, 2 there, 3 failed
  };
  struct Job {
    Slot* slot;
    int record, part;
  };

  ExpertFile() = default;
  bool map(std::string* error);
  bool read_into(uint64_t budget, int used, std::string* error);
  uint64_t offset(int record, int part) const { return data_at_ + record * stride_ + (part ? part2_at_ : 0); }
  uint64_t part_bytes(int part) const { return part ? header_.bytes2 : header_.bytes13; }
  const void* part(int expert, int which);
  void read(const Job& job, std::string* error);
  void work();
  bool start_read(int expert);
  Slot* find(int expert);

  std::string path_, error_;
  ExpertHeader header_{};
  std::vector<uint64_t> sums_;
  uint64_t data_at_ = 0, stride_ = 0, part2_at_ = 0, size_ = 0, slot_bytes_ = 0;
  int file_ = -1;
  const uint8_t* mapped_ = nullptr;
  std::vector<uint8_t> checked_;  // mapped: parts whose checksum was compared

  std::vector<std::vector<Slot>> layers_;  // slots of each layer's own
  std::vector<Slot> shared_;
  std::vector<std::vector<float>> scores_;  // how often lately, by layer and expert
  std::vector<void*> memory_;

  int layer_ = 0;
  std::vector<int> needed_, ready_, waiting_, asked_;

  std::vector<std::thread> readers_;
  mutable std::mutex lock_;
  std::condition_variable work_ready_, part_ready_;
  std::deque<Job> jobs_;
  std::string failed_;
  bool stop_ = false;
  ExpertStatistics counted_{};
};

}  // namespace phi3mobile
