#include "text/pattern_nodes.h"

#include "base/error.h"
#include "base/json.h"
#include "base/utf8.h"

#include <algorithm>
#include <utility>

namespace phi3mobile {

namespace {

constexpr uint32_t kLast = 0x10FFFF;
constexpr int kDeepest = 50;

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

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Node whole() {
    if (text_.substr(0, 4) == "(?i)") {
      at_ = 4;
      ignore_case_ = true;
    }
    Node node = either(0);
    if (at_ != text_.size()) wrong("a parenthesis closes nothing");
    return node;
  }

 private:
  [[noreturn]] void wrong(const char* why) const {
    std::string_view shown = text_.substr(0, 80);
    while (invalid_utf8(shown) != shown.size()) shown.remove_suffix(1);
    throw InputError("the pattern " + quoted(shown) + " of the tokenizer is not understood (" + why + ")");
  }

  [[noreturn]] void unread(const char* what) const { wrong((std::string("the core reads no ") + what).c_str()); }

  bool at_end() const { return at_ == text_.size(); }
  bool sees(std::string_view next) const { return text_.substr(at_, next.size()) == next; }
  bool take(std::string_view next) {
    if (!sees(next)) return false;
    at_ += next.size();
    return true;
  }

  Node either(int depth) {
    if (depth > kDeepest) unread("groups so deep");
    Node node;
    node.kind = Node::Either;
    do {
      node.parts.push_back(sequence(depth));
    } while (take("|"));
    return node.parts.size() == 1 ? std::move(node.parts[0]) : node;
  }

  Node sequence(int depth) {
    Node node;
    node.kind = Node::Sequence;
    while (!at_end() && !sees("|") && !sees(")")) node.parts.push_back(repeated(atom(depth)));
    return node;
  }

  Node repeated(Node part) {
    uint32_t least, most;
    bool counted;
    if (!repeat(least, most, counted)) return part;
    if (part.kind == Node::Assert || part.kind == Node::Ahead) wrong("it repeats what takes no character");
    Node node;
    node.kind = Node::Repeat;
    node.least = least;
    node.most = most;
    if (take("?"))
      node.mode = Instruction::Lazy;
    else if (sees("+") && counted)
      unread("+ after a number of times");  // Oniguruma: repeated, re: possessive
    else if (take("+"))
      node.mode = Instruction::Possessive;
    if (repeat(least, most, counted)) wrong("it repeats a repeat");
    node.parts.push_back(std::move(part));
    return node;
  }

  bool repeat(uint32_t& least, uint32_t& most, bool& counted) {
    counted = false;
    least = 0;
    most = kEndless;
    if (take("*")) return true;
    if (take("+")) {
      least = 1;
      return true;
    }
    if (take("?")) {
      most = 1;
      return true;
    }
    const size_t start = at_;
    if (!take("{")) return false;
    const bool low = number(least), range = take(",");
    if (range)
      number(most);
    else
      most = least;
    if (!take("}") || !(low || range)) {
      at_ = start;  // a brace like any other character
      return false;
    }
    if (most < least) wrong("a repeat's greatest number is below its least");
    counted = true;
    return true;
  }

  bool number(uint32_t& value) {
    const size_t start = at_;
    uint64_t found = 0;
    while (!at_end() && text_[at_] >= '0' && text_[at_] <= '9' && found < 1000)
      found = found * 10 + uint64_t(text_[at_++] - '0');
    if (found >= 1000) unread("repeats of 1000 and more");
    if (at_ > start) value = uint32_t(found);
    return at_ > start;
  }

  Node group(int depth) {
    Node node;
    bool outer = ignore_case_;
    if (take("?:")) {
      node = either(depth + 1);
    } else if (take("?i:")) {
      ignore_case_ = true;
      node = either(depth + 1);
    } else if (sees("?=") || sees("?!") || sees("?>")) {
      const char kind = text_[at_ + 1];
      at_ += 2;
      node.kind = kind == '>' ? Node::Atomic : Node::Ahead;
      node.negative = kind == '!';
      node.parts.push_back(either(depth + 1));
    } else if (sees("?<=") || sees("?<!")) {
      unread("lookbehind");
    } else if (sees("?")) {
      unread("groups with such a sign");
    } else {
      node = either(depth + 1);
    }
    ignore_case_ = outer;
    if (!take(")")) wrong("a parenthesis is not closed");
    return node;
  }

  Node atom(int depth) {
    if (take("(")) return group(depth);
    if (take("[")) return set_of(members());
    if (take(".")) return set_of(others({{'\n', '\n'}}));
    if (take("^")) return assertion('^');
    if (take("$")) return assertion('$');
    if (sees("*") || sees("+") || sees("?")) wrong("it repeats nothing");
    if (take("\\")) {
      if (at_end()) wrong("it ends with a backslash");
      const char kind = text_[at_];
      if (kind == 'A' || kind == 'Z' || kind == 'b' || kind == 'B') {
        ++at_;
        return assertion(kind);
      }
      return set_of(escaped());
    }
    return set_of(folded({one()}));
  }

  Node assertion(char place) {
    Node node;
    node.kind = Node::Assert;
    node.place = place;
    return node;
  }

  std::pair<uint32_t, uint32_t> one() { return plain(next_character(text_, at_)); }

  std::pair<uint32_t, uint32_t> plain(uint32_t code) const {
    if (ignore_case_ && code >= 0x80) unread("(?i:) beyond ASCII");
    return {code, code};
  }

  // What stands between [ and ].
  Ranges members() {
    const bool negated = take("^");
    Ranges found;
    for (bool first = true; first || !sees("]"); first = false) {
      if (at_end()) wrong("a class is not closed");
      if (sees("[") || sees("&&") || sees("--") || sees("~~") || sees("||")) unread("sets within a class");
      Ranges low = class_member();
      const bool single = low.size() == 1 && low[0].first == low[0].second;
      if (sees("-") && text_.substr(at_ + 1, 1) != "]" && at_ + 1 < text_.size()) {
        ++at_;
        const Ranges high = class_member();
        if (!single || high.size() != 1 || high[0].first != high[0].second) wrong("a range in a class has no end");
        if (high[0].first < low[0].first) wrong("a range in a class goes down");
        low = {{low[0].first, high[0].first}};
      }
      found.insert(found.end(), low.begin(), low.end());
    }
    ++at_;
    found = folded(joined(found));
    return negated ? others(found) : found;
  }

  Ranges class_member() {
    if (!take("\\")) return {one()};
    if (at_end()) wrong("it ends with a backslash");
    if (take("b")) return {{'\b', '\b'}};
    return escaped();
  }

  // What a backslash, already taken, and what follows stand for.
  Ranges escaped() {
    const char kind = text_[at_];
    const auto either_way = [&](char negated, const Ranges& ranges) { return kind == negated ? others(ranges) : ranges; };
    switch (kind) {
      case 'p':
      case 'P':
        return property();
      case 's':
      case 'S':
        return ++at_, either_way('S', spaces());
      case 'd':
      case 'D':
        return ++at_, either_way('D', category("Nd"));
      case 'w':
      case 'W':
        return ++at_, either_way('W', word_characters());
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
      ++at_;
      return {{uint32_t(codes[found]), uint32_t(codes[found])}};
    }
    if (is_letter(uint8_t(kind)) || (kind >= '0' && kind <= '9')) unread("such escape");
    return folded({one()});
  }

  Ranges hexadecimal(size_t digits) {
    uint32_t code = 0;
    ++at_;
    for (size_t i = 0; i < digits; ++i, ++at_) {
      const char digit = at_end() ? '\0' : text_[at_];
      const char low = char(digit | 32);
      if (digit >= '0' && digit <= '9')
        code = code << 4 | uint32_t(digit - '0');
      else if (low >= 'a' && low <= 'f')
        code = code << 4 | uint32_t(low - 'a' + 10);
      else
        wrong("hexadecimal digits were expected");
    }
    if (code > kLast) wrong("there is no such character");
    return folded({plain(code)});
  }

  Ranges property() {
    const bool negated = text_[at_] == 'P';
    ++at_;
    if (!take("{")) unread("property without braces");
    const bool also = take("^");
    const size_t end = text_.find('}', at_);
    if (end == text_.npos) wrong("a brace is not closed");
    const std::string_view name = text_.substr(at_, end - at_);
    at_ = end + 1;
    const Ranges found = name.empty() ? Ranges() : category(name);
    if (found.empty()) wrong(("the unknown character class " + std::string(name.substr(0, 40))).c_str());
    if (ignore_case_ && (name[0] == 'L' || name == "N" || name == "Nl" || name[0] == 'S')) unread("property in (?i:)");
    return negated != also ? others(found) : found;
  }

  // With the other case of letters, inside (?i:): as Python's re, which finds ı and İ for i, ſ for s, K for k.
  Ranges folded(Ranges ranges) const {
    if (!ignore_case_) return ranges;
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

  std::string_view text_;
  size_t at_ = 0;
  bool ignore_case_ = false;
};

}  // namespace

Node set_of(Ranges ranges) {
  Node node;
  node.kind = Node::Set;
  node.set = std::move(ranges);
  return node;
}

Node parsed(std::string_view pattern) { return Parser(pattern).whole(); }

}  // namespace phi3mobile
