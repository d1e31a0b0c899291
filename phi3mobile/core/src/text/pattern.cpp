#include "text/pattern.h"

#include "base/error.h"
#include "base/json.h"
#include "base/utf8.h"

#include <algorithm>
#include <utility>

namespace phi3mobile {

namespace {

constexpr uint32_t kLast = 0x10FFFF, kEndless = uint32_t(-1);
constexpr size_t kMostInstructions = 20'000;
constexpr int kDeepest = 50;

struct Node {
  enum Kind { Nothing, Set, Sequence, Either, Repeat, Ahead, Atomic, Assert } kind = Nothing;
  std::vector<Node> parts;
  Ranges set;
  uint32_t least = 0, most = 0;
  Instruction::Mode mode = Instruction::Greedy;
  bool negative = false;
  char place = 0;
};

Node set_of(Ranges ranges) {
  Node node;
  node.kind = Node::Set;
  node.set = std::move(ranges);
  return node;
}

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
    while (!at_end() && text_[at_] >= '0' && text_[at_] <= '9' && found < 1000) found = found * 10 + uint64_t(text_[at_++] - '0');
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

// Nodes to instructions.
class Compiler {
 public:
  explicit Compiler(Pattern& pattern) : pattern_(pattern) {}

  void whole(const Node& node) {
    emit(node);
    add(Instruction::Matched);
    pattern_.may_be_empty_ = empty(node);
    pattern_.starts_ = firsts(node);
  }

 private:
  Instruction& add(Instruction::Op op) {
    if (pattern_.code_.size() >= kMostInstructions) throw InputError("the tokenizer's pattern is too large");
    pattern_.code_.emplace_back();
    pattern_.code_.back().op = op;
    return pattern_.code_.back();
  }

  uint32_t here() const { return uint32_t(pattern_.code_.size()); }

  uint32_t set(const Ranges& ranges) {
    for (size_t i = 0; i < known_.size(); ++i) {
      if (known_[i] == ranges) return uint32_t(i);
    }
    known_.push_back(ranges);
    pattern_.sets_.emplace_back(ranges);
    return uint32_t(known_.size() - 1);
  }

  // A fork into `node`, which comes next, or past it: where that goes is set later.
  uint32_t fork(const Node& node, Instruction::Mode mode) {
    const uint32_t at = here();
    add(Instruction::Fork).mode = mode;
    if (!empty(node)) {
      pattern_.code_[at].first = int32_t(pattern_.firsts_.size());
      pattern_.firsts_.push_back(firsts(node));
    }
    return at;
  }

  void emit(const Node& node) {
    switch (node.kind) {
      case Node::Nothing:
        return;
      case Node::Set:
        return one(node);
      case Node::Sequence:
        for (const Node& part : node.parts) emit(part);
        return;
      case Node::Either:
        return either(node);
      case Node::Repeat:
        return repeat(node);
      case Node::Ahead:
      case Node::Atomic:
        return inner(node.kind == Node::Ahead ? Instruction::Ahead : Instruction::Atomic, node);
      case Node::Assert:
        add(Instruction::Assert).place = node.place;
        return;
    }
  }

  void one(const Node& node) {
    const uint32_t number = set(node.set);
    add(Instruction::One).set = number;
  }

  void either(const Node& node) {
    std::vector<uint32_t> ends;
    for (size_t i = 0; i + 1 < node.parts.size(); ++i) {
      const uint32_t at = fork(node.parts[i], Instruction::Greedy);
      emit(node.parts[i]);
      ends.push_back(here());
      add(Instruction::Jump);
      pattern_.code_[at].to = here();
    }
    emit(node.parts.back());
    for (const uint32_t end : ends) pattern_.code_[end].to = here();
  }

  void inner(Instruction::Op op, const Node& node) {
    const uint32_t at = here();
    add(op).negative = node.negative;
    emit(node.parts[0]);
    add(Instruction::Matched);
    pattern_.code_[at].to = here();
  }

  void repeat(const Node& node) {
    const Node& part = node.parts[0];
    if (part.kind == Node::Set) {
      const uint32_t number = set(part.set);
      Instruction& many = add(Instruction::Many);
      many.set = number;
      many.least = node.least;
      many.most = node.most;
      many.mode = node.mode;
      return;
    }
    if (empty(part)) throw InputError("the tokenizer's pattern repeats what may be empty: the core reads no such pattern");
    if (node.mode == Instruction::Possessive) {
      Node greedy = node, atomic;
      greedy.mode = Instruction::Greedy;
      atomic.parts.push_back(std::move(greedy));
      return inner(Instruction::Atomic, atomic);
    }
    for (uint32_t i = 0; i < node.least; ++i) emit(part);
    if (node.most == kEndless) {
      const uint32_t at = fork(part, node.mode);
      emit(part);
      add(Instruction::Jump).to = at;
      pattern_.code_[at].to = here();
      return;
    }
    std::vector<uint32_t> forks;
    for (uint32_t i = node.least; i < node.most; ++i) {
      forks.push_back(fork(part, node.mode));
      emit(part);
    }
    for (const uint32_t at : forks) pattern_.code_[at].to = here();
  }

  // Whether a node may match without taking a character.
  static bool empty(const Node& node) {
    const auto one_of = [](const Node& part) { return empty(part); };
    switch (node.kind) {
      case Node::Set:
        return false;
      case Node::Sequence:
        return std::all_of(node.parts.begin(), node.parts.end(), one_of);
      case Node::Either:
        return std::any_of(node.parts.begin(), node.parts.end(), one_of);
      case Node::Repeat:
        return node.least == 0 || empty(node.parts[0]);
      case Node::Atomic:
        return empty(node.parts[0]);
      default:
        return true;
    }
  }

  // Bytes that a match may start with, which takes a character.
  static FirstBytes firsts(const Node& node) {
    FirstBytes found;
    if (node.kind == Node::Set) {
      for (const auto& [first, last] : node.set) {
        for (uint32_t code = first; code <= last && code < 0x80; ++code) found.set(code);
        for (uint32_t byte = 0xC2; last >= 0x80 && byte < 0xF5; ++byte) found.set(byte);
      }
    } else if (node.kind == Node::Sequence) {
      for (const Node& part : node.parts) {
        found |= firsts(part);
        if (!empty(part)) break;
      }
    } else if (node.kind != Node::Ahead) {
      for (const Node& part : node.parts) found |= firsts(part);
    }
    return found;
  }

  Pattern& pattern_;
  std::vector<Ranges> known_;
};

Pattern::Pattern(std::string_view text) { Compiler(*this).whole(Parser(text).whole()); }

Pattern Pattern::literal(std::string_view text) {
  Node node;
  node.kind = Node::Sequence;
  for (size_t at = 0; at < text.size();) {
    const uint32_t code = next_character(text, at);
    node.parts.push_back(set_of({{code, code}}));
  }
  Pattern pattern;
  Compiler(pattern).whole(node);
  return pattern;
}

}  // namespace phi3mobile
