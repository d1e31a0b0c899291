#include "base/json.h"

#include "base/error.h"
#include "base/utf8.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

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

// As Python's repr: the fewest digits that read back, an exponent from 1e16 and below 1e-4.
std::string shortest(double value) {
  char text[40];
  int digits = 1;
  do {
    std::snprintf(text, sizeof text, "%.*e", digits - 1, value);
  } while (std::strtod(text, nullptr) != value && ++digits <= 17);
  const int exponent = std::atoi(std::strchr(text, 'e') + 1);
  if (exponent < -4 || exponent >= 16) {
    std::snprintf(text, sizeof text, "%.*g", digits, value);
    return text;
  }
  std::snprintf(text, sizeof text, "%.*f", std::max(digits - 1 - exponent, 1), value);
  return text;
}

class Writer {
 public:
  explicit Writer(bool spaced) : comma_(spaced ? ", " : ","), colon_(spaced ? ": " : ":") {}

  void write(const Json& value) {
    if (value.is_null()) {
      text += "null";
    } else if (value.is_bool()) {
      text += value.boolean() ? "true" : "false";
    } else if (value.is_integer()) {
      text += std::to_string(value.integer());
    } else if (value.is_number()) {
      text += shortest(value.number());
    } else if (value.is_string()) {
      text += quoted(value.string());
    } else if (value.is_array()) {
      list('[', value.array(), ']', [&](const Json& item) { write(item); });
    } else {
      list('{', value.object(), '}', [&](const auto& member) {
        text += quoted(member.first) + colon_;
        write(member.second);
      });
    }
  }

  std::string text;

 private:
  template <class Items, class One>
  void list(char open, const Items& items, char close, One one) {
    text += open;
    bool first = true;
    for (const auto& item : items) {
      if (!first) text += comma_;
      first = false;
      one(item);
    }
    text += close;
  }

  const char *comma_, *colon_;
};

const Json kNull;

}  // namespace

Json Json::parse(std::string_view text, const std::string& what) {
  if (const size_t at = invalid_utf8(text); at != text.size()) {
    throw InputError(what + " is not UTF-8 at byte " + std::to_string(at));
  }
  return Reader(text, what).whole();
}

const Json* Json::find(std::string_view name) const {
  if (!is_object()) return nullptr;
  const Object& members = object();
  for (auto member = members.rbegin(); member != members.rend(); ++member) {
    if (member->first == name) return &member->second;
  }
  return nullptr;
}

const Json& Json::operator[](std::string_view name) const {
  const Json* found = find(name);
  return found ? *found : kNull;
}

bool Json::has(std::string_view name) const { return find(name) != nullptr; }

void Json::set(std::string_view name, Json value) {
  if (!is_object()) value_ = Object();
  if (const Json* found = find(name)) {
    *const_cast<Json*>(found) = std::move(value);
  } else {
    std::get<Object>(value_).emplace_back(name, std::move(value));
  }
}

Json Json::take(std::string_view name) {
  const Json* found = find(name);
  return found ? std::exchange(*const_cast<Json*>(found), Json()) : Json();
}

std::string Json::dump(bool spaced) const {
  Writer writer(spaced);
  writer.write(*this);
  return std::move(writer.text);
}

std::string quoted(std::string_view text) {
  std::string found = "\"";
  for (const char c : text) {
    switch (c) {
      case '"':
        found += "\\\"";
        break;
      case '\\':
        found += "\\\\";
        break;
      case '\n':
        found += "\\n";
        break;
      case '\r':
        found += "\\r";
        break;
      case '\t':
        found += "\\t";
        break;
      default:
        if (uint8_t(c) < 0x20) {
          char escape[8];
          std::snprintf(escape, sizeof escape, "\\u%04x", unsigned(uint8_t(c)));
          found += escape;
        } else {
          found += c;
        }
    }
  }
  return found + '"';
}

}  // namespace phi3mobile
