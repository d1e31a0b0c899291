#include "guide/pattern.h"

#include "base/utf8.h"

#include <algorithm>
#include <cstdio>
#include <vector>

namespace phi3mobile {

namespace {

enum class Kind { Class, Open, Close, Count, Maybe, Empty, Letter };

struct Token {
  Kind kind;
  std::string_view text;
  int64_t times = 0;  // Count: the least
};

constexpr int64_t kMost = int64_t(1) << 40;  // what counts are cut to

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_hex(char c) { return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }

char at(std::string_view text, size_t i) { return i < text.size() ? text[i] : '\0'; }

size_t hex_digits(std::string_view text, size_t start, size_t most) {
  size_t count = 0;
  while (count < most && start + count < text.size() && is_hex(text[start + count])) ++count;
  return count;
}

// Length of the character or escape that starts at 0 of `text`, which is not empty.
size_t letter(std::string_view text) {
  size_t end = 0;
  if (text[0] != '\\' || text.size() == 1) return next_character(text, end), end;
  if (text[1] == 'x' && hex_digits(text, 2, 2) == 2) return 4;
  if (text[1] == 'u' && hex_digits(text, 2, 4) == 4) return 6;
  if (text[1] == 'u' && at(text, 2) == '{') {
    if (const size_t count = hex_digits(text, 3, text.size()); count && at(text, 3 + count) == '}') return 4 + count;
  }
  if (text[1] == '0') {
    size_t count = 2;
    while (count < 4 && at(text, count) >= '0' && at(text, count) <= '7') ++count;
    return count;
  }
  end = 1;
  return next_character(text, end), end;
}

// Length of a character class, or 0.
size_t class_length(std::string_view text) {
  size_t i = at(text, 1) == '^' ? 2 : 1;
  while (i < text.size() && text[i] != ']') {
    if (text[i] == '\\' && i + 1 == text.size()) return 0;
    i += letter(text.substr(i));
  }
  return i < text.size() ? i + 1 : 0;
}

// Length of the opening of a group.
size_t open_length(std::string_view text) {
  if (at(text, 1) != '?') return 1;
  const size_t end = text.find_first_of("):>=!", 2);
  return end == std::string_view::npos || text[end] == ')' ? 1 : end + 1;
}

// Length of a count in braces, and its least; 0.
size_t count_length(std::string_view text, int64_t* times) {
  size_t i = 1;
  *times = 0;
  while (is_digit(at(text, i))) *times = std::min(*times * 10 + (text[i++] - '0'), kMost);
  if (i == 1) return 0;
  if (at(text, i) == ',') {
    ++i;
    while (is_digit(at(text, i))) ++i;
  }
  return at(text, i) == '}' ? i + 1 : 0;
}

Token next(std::string_view rest) {
  int64_t times = 0;
  const auto token = [&](Kind kind, size_t length) { return Token{kind, rest.substr(0, length), times}; };
  switch (rest[0]) {
    case '[':
      if (const size_t length = class_length(rest)) return token(Kind::Class, length);
      break;
    case '(':
      return token(Kind::Open, open_length(rest));
    case ')':
      return token(Kind::Close, 1);
    case '{':
      if (const size_t length = count_length(rest, &times)) return token(Kind::Count, length);
      break;
    case '*':
    case '?':
      return token(Kind::Maybe, 1);
    case '$':
    case '^':
    case '|':
    case '+':
      return token(Kind::Empty, 1);
    default:
      break;
  }
  return token(Kind::Letter, letter(rest));
}

// A character by its octal number, which Rust has not, by its hexadecimal one.
std::string octal(std::string_view escape) {
  if (escape.substr(0, 2) != "\\0") return std::string(escape);
  unsigned code = 0;
  for (const char digit : escape.substr(1)) code = code * 8 + unsigned(digit - '0');
  char text[8];
  std::snprintf(text, sizeof text, "\\x%02x", code);
  return text;
}

// A character class: ECMA's members are literal, where Rust reads sets in sets; and never all control characters.
// llguidance lets an escaped quote into a class of all of them, into [^"] for one: so NUL, which no answer has, is left out.
std::string class_of(std::string_view text) {
  const size_t start = at(text, 1) == '^' ? 2 : 1;
  std::vector<std::string> members;
  for (size_t i = start; i + 1 < text.size();) {
    const std::string_view member = text.substr(i, letter(text.substr(i, text.size() - 1 - i)));
    members.push_back(member == "\\u0000" ? "\\x00" : octal(member));
    i += member.size();
  }
  std::string made(text.substr(0, start));
  if (start == 2) made += "\\x00";
  for (size_t i = 0; i < members.size(); ++i) {
    std::string& member = members[i];
    const std::string before = i ? members[i - 1] : "";
    const bool twin = i && (before[0] == '\\' ? before.substr(1) : before) == member;
    if (member == "[" || (member == "-" && !i) || (twin && (member == "&" || member == "~" || member == "-")))
      member = "\\" + member;
    else if (member == "\\x00" && i + 1 < members.size() && members[i + 1] == "-")
      member = "\\x01";
  }
  for (const std::string& member : members) made += member;
  return made + ']';
}

}  // namespace

std::string translated(std::string_view pattern) {
  std::string made;
  while (!pattern.empty()) {
    const Token token = next(pattern);
    made += token.kind == Kind::Class ? class_of(token.text) : octal(token.text);
    pattern.remove_prefix(token.text.size());
  }
  return made;
}

int64_t least(std::string_view pattern) {
  std::vector<int64_t> open{0};  // of each open group so far
  int64_t last = 0;              // of the last part
  while (!pattern.empty()) {
    const Token token = next(pattern);
    pattern.remove_prefix(token.text.size());
    switch (token.kind) {
      case Kind::Open:
        open.push_back(0);
        last = 0;
        break;
      case Kind::Close:
        if (open.size() > 1) {
          last = open.back();
          open.pop_back();
          open.back() += last;
        } else {
          open.back() += last = 1;
        }
        break;
      case Kind::Count: {
        const int64_t many = token.times && last > kMost / token.times ? kMost : last * token.times;
        open.back() = std::min(open.back() + many - last, kMost);
        last = many;
        break;
      }
      case Kind::Maybe:
        open.back() -= last;
        last = 0;
        break;
      case Kind::Empty:
        break;
      default:
        open.back() += last = 1;
    }
  }
  int64_t sum = 0;
  for (const int64_t one : open) sum += one;
  return sum;
}

bool spelled(std::string_view text) {
  return std::none_of(text.begin(), text.end(), [](char c) {
    const auto byte = uint8_t(c);
    return byte <= 7 || byte == 0x0B || (byte >= 0x0E && byte <= 0x1F) || byte == 0x7F;
  });
}

}  // namespace phi3mobile
