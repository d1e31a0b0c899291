#include "base/error.h"
#include "base/json.h"
#include "base/utf8.h"

#include <charconv>
#include <cmath>
#include <cstdlib>

namespace phi3mobile {

namespace {

constexpr int kDeepest = 200;

class Reader {
 public:
  Reader(std::string_view text, const std::string& what) : text_(text), what_(what) {}

  Json whole() {
    Json value = any(0);
    space();
    if (at_ != text_.size()) wrong("something follows the value");
    return value;
  }

 private:
  [[noreturn]] void wrong(const char* why) const {
    throw InputError(what_ + " is not JSON: " + why + " at byte " + std::to_string(at_));
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r')) ++at_;
  }

  bool take(char expected) {
    if (at_ == text_.size() || text_[at_] != expected) return false;
    ++at_;
    return true;
  }

  Json word(std::string_view expected, Json value) {
    if (text_.substr(at_, expected.size()) != expected) wrong("a value was expected");
    at_ += expected.size();
    return value;
  }

  Json any(int depth) {
    if (depth > kDeepest) wrong("it is nested too deeply");
    space();
    switch (peek()) {
      case '{':
        return object(depth);
      case '[':
        return array(depth);
      case '"':
        return Json(string());
      case 't':
        return word("true", Json(true));
      case 'f':
        return word("false", Json(false));
      case 'n':
        return word("null", Json());
      default:
        return number();
    }
  }

  Json object(int depth) {
    Json::Object members;
    ++at_;
    space();
    if (take('}')) return members;
    do {
      space();
      if (peek() != '"') wrong("a name in quotes was expected");
      std::string name = string();
      space();
      if (!take(':')) wrong("a colon was expected");
      members.emplace_back(std::move(name), any(depth + 1));
      space();
    } while (take(','));
    if (!take('}')) wrong("a comma or } was expected");
    return members;
  }

  Json array(int depth) {
    Json::Array items;
    ++at_;
    space();
    if (take(']')) return items;
    do {
      items.push_back(any(depth + 1));
      space();
    } while (take(','));
    if (!take(']')) wrong("a comma or ] was expected");
    return items;
  }

  std::string string() {
    std::string found;
    ++at_;
    for (;;) {
      const size_t start = at_;
      while (at_ < text_.size() && text_[at_] != '"' && text_[at_] != '\\' && uint8_t(text_[at_]) >= 0x20) ++at_;
      found.append(text_.substr(start, at_ - start));
      if (take('"')) return found;
      if (!take('\\')) wrong(at_ < text_.size() ? "a control character stands in a string" : "a string does not end");
      escape(found);
    }
  }

  void escape(std::string& to) {
    const char kind = peek();
    ++at_;
    switch (kind) {
      case '"':
      case '\\':
      case '/':
        to += kind;
        return;
      case 'b':
        to += '\b';
        return;
      case 'f':
        to += '\f';
        return;
      case 'n':
        to += '\n';
        return;
      case 'r':
        to += '\r';
        return;
      case 't':
        to += '\t';
        return;
      case 'u':
        append_utf8(to, character());
        return;
      default:
        --at_;
        wrong("an unknown escape");
    }
  }

  uint32_t character() {
    uint32_t code = four();
    if (code >= 0xD800 && code < 0xDC00 && text_.substr(at_, 2) == "\\u") {
      at_ += 2;
      const uint32_t low = four();
      if (low < 0xDC00 || low > 0xDFFF) wrong("half a character");
      return 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    if (code >= 0xD800 && code <= 0xDFFF) wrong("half a character");
    return code;
  }

  uint32_t four() {
    uint32_t code = 0;
    const auto digits = text_.substr(at_, 4);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
    if (digits.size() < 4 || error != std::errc() || end != digits.data() + 4) wrong("four hexadecimal digits were expected");
    at_ += 4;
    return code;
  }

  size_t digits() {
    const size_t start = at_;
    while (peek() >= '0' && peek() <= '9') ++at_;
    return at_ - start;
  }

  Json number() {
    const size_t start = at_;
    take('-');
    const size_t first = at_;
    if (digits() == 0) wrong("a value was expected");
    if (text_[first] == '0' && at_ > first + 1) wrong("a number starts with 0");
    bool whole = true;
    if (take('.')) {
      whole = false;
      if (digits() == 0) wrong("a digit was expected");
    }
    if (peek() == 'e' || peek() == 'E') {
      whole = false;
      ++at_;
      if (!take('+')) take('-');
      if (digits() == 0) wrong("a digit was expected");
    }
    const std::string spelled(text_.substr(start, at_ - start));
    int64_t integer = 0;
    if (whole && std::from_chars(spelled.data(), spelled.data() + spelled.size(), integer).ec == std::errc()) return integer;
    const double value = std::strtod(spelled.c_str(), nullptr);
    if (!std::isfinite(value)) wrong("a number is too large");
    return value;
  }

  std::string_view text_;
  const std::string& what_;
  size_t at_ = 0;
};

}  // namespace

Json Json::parse(std::string_view text, const std::string& what) {
  if (const size_t at = invalid_utf8(text); at != text.size()) {
    throw InputError(what + " is not UTF-8 at byte " + std::to_string(at));
  }
  return Reader(text, what).whole();
}

}  // namespace phi3mobile
