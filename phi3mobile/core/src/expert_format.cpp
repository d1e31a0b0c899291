#include "expert_format.h"
#include "tiles.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <sys/stat.h>
#include <unistd.h>

namespace phi3mobile {
namespace { constexpr uint32_t kVersion = 3, kMostLayers = 4096, kMostExperts = 4096, kMostWidth = 1 << 20; }  // namespace

uint64_t padded(uint64_t size) { return (size + kAlign - 1) / kAlign * kAlign; }

// All of it, or false.
bool read_all(int file, void* to, uint64_t size, uint64_t at) {
  auto* bytes = static_cast<uint8_t*>(to);
  while (size > 0) {
    const ssize_t got = pread(file, bytes, size_t(std::min<uint64_t>(size, 1 << 30)), off_t(at));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    bytes += got, at += uint64_t(got), size -= uint64_t(got);
  }
  return true;
}

uint64_t checksum(const void* bytes, uint64_t size) {
  const auto* from = static_cast<const uint8_t*>(bytes);
  uint64_t sum = 0, i = 0;
  for (; (i + 1) * 8 <= size; ++i) {
    uint64_t word;
    std::memcpy(&word, from + i * 8, 8);
    sum += word * (2 * i + 1);
  }
  if (size % 8) {
    uint64_t word = 0;
    std::memcpy(&word, from + i * 8, size % 8);
    sum += word * (2 * i + 1);
  }
  return sum;
}

std::string read_header(const std::string& path, int file, ExpertHeader* header, std::vector<uint64_t>* sums) {
  struct stat status{};
  if (fstat(file, &status) != 0 || !read_all(file, header, sizeof *header, 0))
    return path + " is too short for a file of experts";
  if (std::memcmp(header->magic, "P3ME", 4) != 0 || header->version != kVersion) {
    return path + " is not a file of experts that this version reads: export the bundle again";
  }
  ExpertHeader& h = *header;
  const auto fits = [](uint32_t x, uint32_t most) { return x >= 1 && x <= most; };
  const TileForm form13{h.hidden, h.group13}, form2{h.inner, h.group2};
  const bool sensible = fits(h.layers, kMostLayers) && fits(h.experts, kMostExperts) && fits(h.hidden, kMostWidth) &&
                        fits(h.inner, kMostWidth) && form13.sensible() && form2.sensible() &&
                        h.bytes13 == uint64_t(2 * form13.matrix_bytes(h.inner)) &&
                        h.bytes2 == uint64_t(form2.matrix_bytes(h.hidden));
  if (!sensible) return path + " is damaged: its header has impossible sizes";
  sums->resize(2 * size_t(h.layers) * h.experts);
  if (!read_all(file, sums->data(), sums->size() * 8, sizeof h)) return path + " is cut off in its checksums";
  std::vector<uint8_t> all(sizeof h + sums->size() * 8);
  ExpertHeader plain = h;
  plain.check = 0;
  std::memcpy(all.data(), &plain, sizeof h);
  std::memcpy(all.data() + sizeof h, sums->data(), sums->size() * 8);
  if (checksum(all.data(), all.size()) != h.check) return path + " is damaged: its header does not match its checksum";
  const uint64_t records = uint64_t(h.layers) * h.experts;
  const uint64_t expected = padded(all.size()) + records * (padded(h.bytes13) + padded(h.bytes2));
  if (uint64_t(status.st_size) != expected) {
    return path + " has " + std::to_string(status.st_size) + " bytes where its header asks for " + std::to_string(expected) +
           ": it is cut off or damaged";
  }
  return "";
}

}  // namespace phi3mobile
