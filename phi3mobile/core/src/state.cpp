#include "state.h"

#include "base/error.h"
#include "base/files.h"

#include <algorithm>
#include <cstring>

namespace phi3mobile {

namespace {

// Little-endian: magic, u64 length of the text, the text, u64 count of buffers, u64 size of each, then runs of pages:
// u64 buffer, u64 first byte, u64 bytes, the bytes; a run of buffer kEnd ends them; u64 checksum of all before.
constexpr char kMagic[8] = {'P', '3', 'M', 'S', 'T', 'A', 'T', '1'};
constexpr size_t kPage = 4096, kLongestText = 64 << 20;
constexpr uint64_t kEnd = ~uint64_t(0);

class Checksum {
 public:
  void add(const void* data, size_t size) {
    const auto* bytes = static_cast<const uint8_t*>(data);
    while (size >= 32) {
      uint64_t words[4];
      std::memcpy(words, bytes, 32);
      for (int i = 0; i < 4; ++i) lanes_[i] = (lanes_[i] ^ words[i]) * 0x9E3779B185EBCA87ull + (lanes_[i] >> 29);
      bytes += 32, size -= 32;
    }
    for (; size > 0; ++bytes, --size) lanes_[0] = (lanes_[0] ^ *bytes) * 0x100000001B3ull;
  }
  uint64_t value() const {
    uint64_t value = 0;
    for (const uint64_t lane : lanes_) value = (value ^ lane ^ lane >> 31) * 0xC2B2AE3D27D4EB4Full;
    return value;
  }

 private:
  uint64_t lanes_[4] = {1, 2, 3, 4};
};

class Writer {
 public:
  explicit Writer(const std::string& path) : file_(path) {}
  void bytes(const void* from, size_t size) {
    sum_.add(from, size);
    file_.write(from, size);
    size_ += int64_t(size);
  }
  void number(uint64_t value) { bytes(&value, sizeof value); }
  int64_t finish() {
    number(sum_.value());
    file_.finish();
    return size_;
  }

 private:
  OutputFile file_;
  Checksum sum_;
  int64_t size_ = 0;
};

class Reader {
 public:
  explicit Reader(const std::string& path) : path_(path), file_(path) {
    char magic[sizeof kMagic];
    if (file_size(path) < int64_t(sizeof magic)) wrong();
    bytes(magic, sizeof magic);
    if (std::memcmp(magic, kMagic, sizeof magic) != 0)
      throw InputError(path + " is no saved state; give a file that a session saved");
  }
  void bytes(void* to, size_t size) {
    file_.exactly(to, size);
    sum_.add(to, size);
  }
  uint64_t number() {
    uint64_t value = 0;
    bytes(&value, sizeof value);
    return value;
  }
  std::string text() {
    const uint64_t size = number();
    if (size > kLongestText) wrong();
    std::string text(size_t(size), '\0');
    bytes(text.data(), text.size());
    return text;
  }
  void finish() {
    const uint64_t sum = sum_.value();
    if (number() != sum) wrong();
  }
  [[noreturn]] void wrong() const { throw InputError(path_ + " is damaged: delete it and prefill again"); }

 private:
  std::string path_;
  InputFile file_;
  Checksum sum_;
};

bool zero(const uint8_t* page, size_t size) {
  return std::all_of(page, page + std::min<size_t>(size, 64), [](uint8_t byte) { return byte == 0; }) &&
         (size <= 64 || std::memcmp(page, page + 64, size - 64) == 0);
}

void write_pages(Writer& out, uint64_t number, const uint8_t* data, size_t size) {
  size_t at = 0;
  while (at < size) {
    size_t end = at;
    while (end < size && !zero(data + end, std::min(kPage, size - end))) end = std::min(end + kPage, size);
    if (end > at) {
      out.number(number);
      out.number(at);
      out.number(end - at);
      out.bytes(data + at, end - at);
    }
    at = std::max(end, at + kPage);
  }
}

// Zeroes the pages that are not: those never touched stay so, and cost no memory.
void clear(uint8_t* data, size_t size) {
  for (size_t at = 0; at < size; at += kPage) {
    const size_t part = std::min(kPage, size - at);
    if (!zero(data + at, part)) std::memset(data + at, 0, part);
  }
}

}  // namespace

int64_t save_state(const std::string& path, const std::string& about, const Memory& memory) {
  Writer out(path);
  out.bytes(kMagic, sizeof kMagic);
  out.number(about.size());
  out.bytes(about.data(), about.size());
  out.number(memory.size());
  for (const auto& buffer : memory) out.number(buffer.second);
  for (size_t i = 0; i < memory.size(); ++i) write_pages(out, i, memory[i].first, memory[i].second);
  out.number(kEnd);
  return out.finish();
}

std::string state_about(const std::string& path) { return Reader(path).text(); }

void load_state(const std::string& path, const Memory& memory) {
  Reader in(path);
  in.text();
  bool same = in.number() == memory.size();
  for (size_t i = 0; same && i < memory.size(); ++i) same = in.number() == memory[i].second;
  if (!same) throw InputError(path + " was saved by another program: prefill again");
  for (const auto& [data, size] : memory) clear(data, size);
  for (uint64_t number; (number = in.number()) != kEnd;) {
    const uint64_t at = in.number(), count = in.number();
    if (number >= memory.size() || at > memory[number].second || count > memory[number].second - at) in.wrong();
    in.bytes(memory[number].first + at, size_t(count));
  }
  in.finish();
}

}  // namespace phi3mobile
