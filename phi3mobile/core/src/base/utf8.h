// UTF-8, the only encoding of texts here.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace phi3mobile {

// The first byte that does not belong to well-formed UTF-8; text.size() if all do.
size_t invalid_utf8(std::string_view text);

// Appends a character.
void append_utf8(std::string& to, uint32_t code);

// The character of well-formed UTF-8 that starts at `at`, which moves past it.
uint32_t next_character(std::string_view text, size_t& at);

// Bytes in, whole characters out: malformed bytes become U+FFFD as soon as they are sure to be, as Python's incremental decoder
// with errors="replace" does.
class Utf8Decoder {
 public:
  std::string push(std::string_view bytes);
  std::string finish();

 private:
  std::string pending_;  // the beginning of a character
};

// Malformed bytes as U+FFFD, one for each longest beginning of a character (Unicode's and Python's practice).
std::string replaced_utf8(std::string_view bytes);

}  // namespace phi3mobile
