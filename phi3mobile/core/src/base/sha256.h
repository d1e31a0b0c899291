// SHA-256 (FIPS 180-4).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace phi3mobile {

class Sha256 {
 public:
  void add(const void* data, size_t size);
  // The digest in hexadecimal; nothing may be added after.
  std::string hex();

 private:
  void block(const uint8_t* data);

  std::array<uint32_t, 8> state_{
      0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19};
  std::array<uint8_t, 64> pending_{};
  uint64_t size_ = 0;
};

}  // namespace phi3mobile
