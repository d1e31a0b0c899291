#include "base/utf8.h"

namespace phi3mobile {

namespace {

constexpr const char* kReplacement = "\xEF\xBF\xBD";

// What the bytes at `at` are: a character of `length` bytes, the beginning of one that needs more, or none.
struct Found {
  enum { Whole, Unfinished, Malformed } kind;
  size_t length;  // bytes that belong together
};

Found look(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return uint8_t(text[i]); };
  const uint8_t first = byte(at);
  if (first < 0x80) return {Found::Whole, 1};
  const size_t length = first >= 0xC2 && first < 0xE0   ? 2
                        : first >= 0xE0 && first < 0xF0 ? 3
                        : first >= 0xF0 && first < 0xF5 ? 4
                                                        : 0;
  if (length == 0) return {Found::Malformed, 1};
  // The second byte's range excludes overlong forms, surrogates, and what lies past U+10FFFF.
  const uint8_t low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
  const uint8_t high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  for (size_t i = 1; i < length; ++i) {
    if (at + i == text.size()) return {Found::Unfinished, i};
    const uint8_t next = byte(at + i);
    if (next < (i == 1 ? low : 0x80) || next > (i == 1 ? high : 0xBF)) return {Found::Malformed, i};
  }
  return {Found::Whole, length};
}

// The first two bytes of a surrogate, at the end of what is known: Python waits for the third before it calls them malformed.
bool half_surrogate(std::string_view text, size_t at) {
  return text.size() - at == 2 && uint8_t(text[at]) == 0xED && uint8_t(text[at + 1]) >= 0xA0 && uint8_t(text[at + 1]) <= 0xBF;
}

}  // namespace

size_t invalid_utf8(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const Found found = look(text, at);
    if (found.kind != Found::Whole) return at;
    at += found.length;
  }
  return at;
}

void append_utf8(std::string& to, uint32_t code) {
  if (code < 0x80) {
    to += char(code);
  } else if (code < 0x800) {
    to += char(0xC0 | code >> 6);
    to += char(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    to += char(0xE0 | code >> 12);
    to += char(0x80 | (code >> 6 & 0x3F));
    to += char(0x80 | (code & 0x3F));
  } else {
    to += char(0xF0 | code >> 18);
    to += char(0x80 | (code >> 12 & 0x3F));
    to += char(0x80 | (code >> 6 & 0x3F));
    to += char(0x80 | (code & 0x3F));
  }
}

uint32_t next_character(std::string_view text, size_t& at) {
  const auto byte = [&](size_t i) { return uint32_t(uint8_t(text[i])); };
  const uint32_t first = byte(at);
  if (first < 0x80) return at += 1, first;
  if (first < 0xE0) return at += 2, (first & 0x1F) << 6 | (byte(at - 1) & 0x3F);
  if (first < 0xF0) return at += 3, (first & 0xF) << 12 | (byte(at - 2) & 0x3F) << 6 | (byte(at - 1) & 0x3F);
  at += 4;
  return (first & 7) << 18 | (byte(at - 3) & 0x3F) << 12 | (byte(at - 2) & 0x3F) << 6 | (byte(at - 1) & 0x3F);
}

std::string Utf8Decoder::push(std::string_view bytes) {
  pending_ += bytes;
  std::string text;
  size_t at = 0;
  while (at < pending_.size()) {
    const Found found = look(pending_, at);
    if (found.kind == Found::Unfinished || half_surrogate(pending_, at)) break;
    if (found.kind == Found::Whole)
      text.append(pending_, at, found.length);
    else
      text += kReplacement;
    at += found.length;
  }
  pending_.erase(0, at);
  return text;
}

std::string Utf8Decoder::finish() {
  const std::string left = pending_.empty()              ? ""
                           : half_surrogate(pending_, 0) ? std::string(kReplacement) + kReplacement
                                                         : kReplacement;
  pending_.clear();
  return left;
}

std::string replaced_utf8(std::string_view bytes) {
  Utf8Decoder decoder;
  std::string text = decoder.push(bytes);
  return text + decoder.finish();
}

}  // namespace phi3mobile
