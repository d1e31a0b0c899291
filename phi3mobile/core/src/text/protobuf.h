// Reading protocol buffers: the fields of a message, one after the other.
#pragma once

#include "text/config.h"

#include <cstdint>
#include <cstring>
#include <string_view>

namespace phi3mobile {

// A field of a message: a number, or bytes, or a float's bits, by its wire type. Damaged: it is none.
class Fields {
 public:
  explicit Fields(std::string_view message) : left_(message) {}

  // Goes to the next field; false: there is none.
  bool next() {
    if (left_.empty()) return false;
    const uint64_t key = varint();
    number = int(key >> 3 & 0x1FFFFFFF);
    kind_ = int(key & 7);
    if (number == 0) damaged();
    switch (kind_) {
      case 0:
        value_ = varint();
        break;
      case 1:
        bytes_ = take(8);
        break;
      case 2:
        bytes_ = take(varint());
        break;
      case 5:
        bytes_ = take(4);
        break;
      default:
        damaged();
    }
    return true;
  }

  int64_t integer() const { return kind_ == 0 ? int64_t(value_) : damaged(); }
  std::string_view bytes() const { return kind_ == 2 ? bytes_ : (damaged(), bytes_); }
  float real() const {
    if (kind_ != 5) damaged();
    float value;
    std::memcpy(&value, bytes_.data(), sizeof value);
    return value;
  }

  int number = 0;

 private:
  [[noreturn]] static int64_t damaged() { throw Damaged("no message of sentencepiece"); }

  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const uint8_t byte = uint8_t(take(1)[0]);
      value |= uint64_t(byte & 127) << shift;
      if (byte < 128) return value;
    }
    damaged();
  }

  std::string_view take(uint64_t size) {
    if (size > left_.size()) damaged();
    const std::string_view found = left_.substr(0, size_t(size));
    left_.remove_prefix(size_t(size));
    return found;
  }

  std::string_view left_, bytes_;
  uint64_t value_ = 0;
  int kind_ = 0;
};

}  // namespace phi3mobile
