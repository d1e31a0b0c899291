// A bundle's plain experts -> XNNPACK's packed form on this machine, once: the library packs slowly (0.13 GB/s a core where
// this was written), so a forward could not do it while it reads.
#include "expert_file.h"
#include "xnnpack_operators.h"

#include <atomic>
#include <cmath>
#include <cstring>
#include <fcntl.h>
#include <limits>
#include <sys/stat.h>
#include <unistd.h>

namespace phi3mobile {

std::string read_header(const std::string& path, int file, ExpertHeader* header, std::vector<uint64_t>* sums);

namespace {

uint64_t padded(uint64_t size) { return (size + kAlign - 1) / kAlign * kAlign; }

struct Closing {
  int file;
  ~Closing() {
    if (file >= 0) close(file);
  }
};

// Gives XNNPACK memory to pack into, and keeps it.
struct Packing {
  xnn_weights_cache_provider provider{};
  std::vector<uint8_t> bytes;
  size_t start = 0, size = 0;
  bool packed = false;

  Packing() {
    provider.context = this;
    provider.look_up = [](void*, const void*) { return std::numeric_limits<size_t>::max(); };
    provider.reserve_space = [](void* self, size_t size) -> void* {
      auto& p = *static_cast<Packing*>(self);
      p.bytes.assign(size + 64, 0);
      p.start = (64 - reinterpret_cast<uintptr_t>(p.bytes.data()) % 64) % 64;
      return p.bytes.data() + p.start;
    };
    provider.look_up_or_insert = [](void* self, const void*, void* at, size_t size) -> size_t {
      auto& p = *static_cast<Packing*>(self);
      p.start = size_t(static_cast<uint8_t*>(at) - p.bytes.data()), p.size = size, p.packed = true;
      return 0;
    };
    provider.is_finalized = [](void* self) { return static_cast<Packing*>(self)->packed; };
    provider.offset_to_addr = [](void* self, size_t offset) -> void* {
      auto& p = *static_cast<Packing*>(self);
      return p.bytes.data() + p.start + offset;
    };
    provider.delete_cache = [](void*) { return 0; };
  }
};

// Codes and then scales of a matrix [rows, width] -> packed bytes.
bool pack(const uint8_t* plain, size_t rows, size_t width, size_t group, Packing* into) {
  const auto* scales = reinterpret_cast<const uint16_t*>(plain + rows * width / 2);
  xnn_operator_t op = nullptr;
  into->packed = false;
  const float most = std::numeric_limits<float>::infinity();
  const int status = xnn_create_fully_connected_nc_qd8_f32_qb4w(
      width, rows, width, rows, group, 8, scales, plain, nullptr, -most, most, 0, &into->provider, &op);
  if (op) xnn_delete_operator(op);
  return status == 0 && into->packed;
}

}  // namespace

std::string pack_experts(const std::string& plain, const std::string& packed, int threads) {
  ExpertHeader h{};
  std::vector<uint64_t> sums;
  const Closing from{open(plain.c_str(), O_RDONLY | O_CLOEXEC)};
  if (from.file < 0) return plain + " can't be opened: " + std::strerror(errno);
  const std::string wrong = read_header(plain, from.file, &h, &sums);
  if (!wrong.empty()) return wrong;
  const uint64_t expect13 = uint64_t(2) * h.inner * (h.hidden / 2 + h.hidden / h.group13 * 2);
  const uint64_t expect2 = uint64_t(h.hidden) * (h.inner / 2 + h.inner / h.group2 * 2);
  if (h.packed || h.bytes13 != expect13 || h.bytes2 != expect2 || h.hidden % h.group13 || h.inner % h.group2) {
    return plain + " holds no plain experts of the sizes that its header gives";
  }
  if (xnn_initialize(nullptr) != 0) return "XNNPACK does not start on this machine";
  const Closing to{open(packed.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)};
  if (to.file < 0) return packed + " can't be written: " + std::strerror(errno);

  const uint64_t data_at = padded(sizeof h + sums.size() * 8), stride = padded(h.bytes13) + padded(h.bytes2);
  const int records = int(h.layers * h.experts);
  ExpertHeader made = h;
  made.packed = 1;
  {                                                                            // how large a packed part is
    std::vector<uint8_t> sample(size_t(std::max(h.bytes13, h.bytes2)), 0x3f);  // scales have to be sensible: 0x3f3f is 0.75
    Packing probe;
    if (!pack(sample.data(), 2 * size_t(h.inner), h.hidden, h.group13, &probe))
      return "XNNPACK can't pack experts of this shape";
    made.bytes13 = probe.size;
    if (!pack(sample.data(), h.hidden, h.inner, h.group2, &probe)) return "XNNPACK can't pack experts of this shape";
    made.bytes2 = probe.size;
  }
  const uint64_t new_stride = padded(made.bytes13) + padded(made.bytes2);
  if (ftruncate(to.file, off_t(data_at + uint64_t(records) * new_stride)) != 0) return packed + ": the disk is full";

  std::vector<uint64_t> new_sums(sums.size());
  std::atomic<int> next{0};
  std::mutex lock;
  std::string failed;
  const auto work = [&] {
    Packing packing;
    std::vector<uint8_t> bytes(size_t(std::max(h.bytes13, h.bytes2)));
    const auto fail = [&](const std::string& why) {
      const std::lock_guard<std::mutex> hold(lock);
      if (failed.empty()) failed = why;
      next = records;
    };
    for (int record = next++; record < records; record = next++) {
      for (int part = 0; part < 2; ++part) {
        const uint64_t size = part ? h.bytes2 : h.bytes13;
        uint64_t at = data_at + uint64_t(record) * stride + (part ? padded(h.bytes13) : 0), got = 0;
        while (got < size) {
          const ssize_t n = pread(from.file, bytes.data() + got, size_t(size - got), off_t(at + got));
          if (n <= 0) return fail(plain + " can't be read: it is cut off or the disk fails");
          got += uint64_t(n);
        }
        const std::string where =
            "layer " + std::to_string(record / int(h.experts)) + ", expert " + std::to_string(record % int(h.experts));
        if (checksum(bytes.data(), size) != sums[2 * record + part]) {
          return fail(plain + " is damaged at " + where + ": the checksum does not match");
        }
        const bool fits = part ? pack(bytes.data(), h.hidden, h.inner, h.group2, &packing)
                               : pack(bytes.data(), 2 * size_t(h.inner), h.hidden, h.group13, &packing);
        if (!fits || packing.size != (part ? made.bytes2 : made.bytes13)) return fail("XNNPACK can't pack " + where);
        const uint8_t* data = packing.bytes.data() + packing.start;
        new_sums[2 * record + part] = checksum(data, packing.size);
        at = data_at + uint64_t(record) * new_stride + (part ? padded(made.bytes13) : 0);
        uint64_t put = 0;
        while (put < packing.size) {
          const ssize_t n = pwrite(to.file, data + put, size_t(packing.size - put), off_t(at + put));
          if (n <= 0) return fail(packed + " can't be written: " + std::strerror(errno));
          put += uint64_t(n);
        }
      }
    }
  };
  std::vector<std::thread> others;
  for (int i = 1; i < std::max(1, threads); ++i) others.emplace_back(work);
  work();
  for (auto& other : others) other.join();
  if (!failed.empty()) return failed;

  std::vector<uint8_t> head(sizeof made + new_sums.size() * 8);
  made.check = 0;
  std::memcpy(head.data(), &made, sizeof made);
  std::memcpy(head.data() + sizeof made, new_sums.data(), new_sums.size() * 8);
  made.check = checksum(head.data(), head.size());
  std::memcpy(head.data(), &made, sizeof made);
  if (pwrite(to.file, head.data(), head.size(), 0) != ssize_t(head.size()) || fsync(to.file) != 0) {
    return packed + " can't be written: " + std::strerror(errno);
  }
  return "";
}

}  // namespace phi3mobile
