#include "text/pattern_class.h"

#include "base/error.h"
#include "base/json.h"
#include "base/utf8.h"

#include <algorithm>
#include <string>
#include <utility>

namespace phi3mobile {

namespace {

constexpr uint32_t kLast = 0x10FFFF;

// In order and apart.
Ranges joined(Ranges ranges) {
  std::sort(ranges.begin(), ranges.end());
  Ranges found;
  for (const auto& range : ranges) {
    if (!found.empty() && range.first <= found.back().second + 1)
      found.back().second = std::max(found.back().second, range.second);
    else
      found.push_back(range);
  }
  return found;
}

const Ranges& word_characters() {
  static const Ranges found = [] {
    Ranges ranges = category("L");
    for (const auto& range : category("N")) ranges.push_back(range);
    ranges.emplace_back('_', '_');
    return joined(ranges);
  }();
  return found;
}

bool is_letter(uint32_t code) { return (code | 32) >= 'a' && (code | 32) <= 'z' && code < 128; }

class Characters {
 public:
  explicit Characters(PatternText& in) : in_(in) {}

  Ranges character() { return folded({one()}); }

  // What stands between [ and ].
  Ranges members() {
    const bool negated = in_.take("^");
    Ranges found;
    for (bool first = true; first || !in_.sees("]"); first = false) {
      if (in_.at_end()) in_.wrong("a class is not closed");
      if (in_.sees("[") || in_.sees("&&") || in_.sees("--") || in_.sees("~~") || in_.sees("||"))
        in_.unread("sets within a class");
      Ranges low = class_member();
      const bool single = low.size() == 1 && low[0].first == low[0].second;
      if (in_.sees("-") && in_.text.substr(in_.at + 1, 1) != "]" && in_.at + 1 < in_.text.size()) {
        ++in_.at;
        const Ranges high = class_member();
        if (!single || high.size() != 1 || high[0].first != high[0].second) in_.wrong("a range in a class has no end");
        if (high[0].first < low[0].first) in_.wrong("a range in a class goes down");
        low = {{low[0].first, high[0].first}};
      }
      found.insert(found.end(), low.begin(), low.end());
    }
    ++in_.at;
    found = folded(joined(found));
    return negated ? others(found) : found;
  }

  // What a backslash, already taken, and what follows stand for.
  Ranges escaped() {
    const char kind = in_.text[in_.at];
    const auto either_way = [&](char negated, const Ranges& ranges) { return kind == negated ? others(ranges) : ranges; };
    switch (kind) {
      case 'p':
      case 'P':
        return property();
      case 's':
      case 'S':
        return ++in_.at, either_way('S', spaces());
      case 'd':
      case 'D':
        return ++in_.at, either_way('D', category("Nd"));
      case 'w':
      case 'W':
        return ++in_.at, either_way('W', word_characters());
      case 'x':
        return hexadecimal(2);
      case 'u':
        return hexadecimal(4);
      case 'U':
        return hexadecimal(8);
      default:
        break;
    }
    static constexpr std::string_view names = "tnrfva", codes = "\t\n\r\f\v\a";
    if (const size_t found = names.find(kind); found != names.npos) {
      ++in_.at;
      return {{uint32_t(codes[found]), uint32_t(codes[found])}};
    }
    if (is_letter(uint8_t(kind)) || (kind >= '0' && kind <= '9')) in_.unread("such escape");
    return folded({one()});
  }

 private:
  std::pair<uint32_t, uint32_t> one() { return plain(next_character(in_.text, in_.at)); }

  std::pair<uint32_t, uint32_t> plain(uint32_t code) const {
    if (in_.ignore_case && code >= 0x80) in_.unread("(?i:) beyond ASCII");
    return {code, code};
  }

  Ranges class_member() {
    if (!in_.take("\\")) return {one()};
    if (in_.at_end()) in_.wrong("it ends with a backslash");
    if (in_.take("b")) return {{'\b', '\b'}};
    return escaped();
  }

  Ranges hexadecimal(size_t digits) {
    uint32_t code = 0;
    ++in_.at;
    for (size_t i = 0; i < digits; ++i, ++in_.at) {
      const char digit = in_.at_end() ? '\0' : in_.text[in_.at];
      const char low = char(digit | 32);
      if (digit >= '0' && digit <= '9')
        code = code << 4 | uint32_t(digit - '0');
      else if (low >= 'a' && low <= 'f')
        code = code << 4 | uint32_t(low - 'a' + 10);
      else
        in_.wrong("hexadecimal digits were expected");
    }
    if (code > kLast) in_.wrong("there is no such character");
    return folded({plain(code)});
  }

  Ranges property() {
    const bool negated = in_.text[in_.at] == 'P';
    ++in_.at;
    if (!in_.take("{")) in_.unread("property without braces");
    const bool also = in_.take("^");
    const size_t end = in_.text.find('}', in_.at);
    if (end == in_.text.npos) in_.wrong("a brace is not closed");
    const std::string_view name = in_.text.substr(in_.at, end - in_.at);
    in_.at = end + 1;
    const Ranges found = name.empty() ? Ranges() : category(name);
    if (found.empty()) in_.wrong(("the unknown character class " + std::string(name.substr(0, 40))).c_str());
    if (in_.ignore_case && (name[0] == 'L' || name == "N" || name == "Nl" || name[0] == 'S')) in_.unread("property in (?i:)");
    return negated != also ? others(found) : found;
  }

  // With the other case of letters, inside (?i:): as Python's re, which finds ı and İ for i, ſ for s, K for k.
  Ranges folded(Ranges ranges) const {
    if (!in_.ignore_case) return ranges;
    Ranges found = ranges;
    for (const auto& [first, last] : ranges) {
      for (uint32_t code = first; code <= last && code < 0x80; ++code) {
        if (!is_letter(code)) continue;
        found.emplace_back(code ^ 32, code ^ 32);
        const uint32_t low = code | 32;
        if (low == 'i') found.emplace_back(0x130, 0x131);
        if (low == 's') found.emplace_back(0x17F, 0x17F);
        if (low == 'k') found.emplace_back(0x212A, 0x212A);
      }
    }
    return joined(found);
  }

  PatternText& in_;
};

}  // namespace

Ranges others(const Ranges& ranges) {
  Ranges found;
  uint32_t next = 0;
  for (const auto& [first, last] : joined(ranges)) {
    if (first > next) found.emplace_back(next, first - 1);
    next = last + 1;
  }
  if (next <= kLast) found.emplace_back(next, kLast);
  return found;
}

Ranges read_character(PatternText& in) { return Characters(in).character(); }
Ranges read_escape(PatternText& in) { return Characters(in).escaped(); }
Ranges read_class(PatternText& in) { return Characters(in).members(); }

void PatternText::wrong(const char* why) const {
  std::string_view shown = text.substr(0, 80);
  while (invalid_utf8(shown) != shown.size()) shown.remove_suffix(1);
  throw InputError("the pattern " + quoted(shown) + " of the tokenizer is not understood (" + why + ")");
}

void PatternText::unread(const char* what) const { wrong((std::string("the core reads no ") + what).c_str()); }

}  // namespace phi3mobile
