#include "text/pattern_nodes.h"

#include "text/pattern_class.h"
#include "text/pattern_text.h"

#include <utility>

namespace phi3mobile {

namespace {

constexpr int kDeepest = 50;

class Parser {
 public:
  explicit Parser(std::string_view text) : in_{text} {}

  Node whole() {
    if (in_.text.substr(0, 4) == "(?i)") {
      in_.at = 4;
      in_.ignore_case = true;
    }
    Node node = either(0);
    if (in_.at != in_.text.size()) in_.wrong("a parenthesis closes nothing");
    return node;
  }

 private:
  Node either(int depth) {
    if (depth > kDeepest) in_.unread("groups so deep");
    Node node;
    node.kind = Node::Either;
    do {
      node.parts.push_back(sequence(depth));
    } while (in_.take("|"));
    return node.parts.size() == 1 ? std::move(node.parts[0]) : node;
  }

  Node sequence(int depth) {
    Node node;
    node.kind = Node::Sequence;
    while (!in_.at_end() && !in_.sees("|") && !in_.sees(")")) node.parts.push_back(repeated(atom(depth)));
    return node;
  }

  Node repeated(Node part) {
    uint32_t least, most;
    bool counted;
    if (!repeat(least, most, counted)) return part;
    if (part.kind == Node::Assert || part.kind == Node::Ahead) in_.wrong("it repeats what takes no character");
    Node node;
    node.kind = Node::Repeat;
    node.least = least;
    node.most = most;
    if (in_.take("?"))
      node.mode = Instruction::Lazy;
    else if (in_.sees("+") && counted)
      in_.unread("+ after a number of times");  // Oniguruma: repeated, re: possessive
    else if (in_.take("+"))
      node.mode = Instruction::Possessive;
    if (repeat(least, most, counted)) in_.wrong("it repeats a repeat");
    node.parts.push_back(std::move(part));
    return node;
  }

  bool repeat(uint32_t& least, uint32_t& most, bool& counted) {
    counted = false;
    least = 0;
    most = kEndless;
    if (in_.take("*")) return true;
    if (in_.take("+")) {
      least = 1;
      return true;
    }
    if (in_.take("?")) {
      most = 1;
      return true;
    }
    const size_t start = in_.at;
    if (!in_.take("{")) return false;
    const bool low = number(least), range = in_.take(",");
    if (range)
      number(most);
    else
      most = least;
    if (!in_.take("}") || !(low || range)) {
      in_.at = start;  // a brace like any other character
      return false;
    }
    if (most < least) in_.wrong("a repeat's greatest number is below its least");
    counted = true;
    return true;
  }

  bool number(uint32_t& value) {
    const size_t start = in_.at;
    uint64_t found = 0;
    while (!in_.at_end() && in_.text[in_.at] >= '0' && in_.text[in_.at] <= '9' && found < 1000)
      found = found * 10 + uint64_t(in_.text[in_.at++] - '0');
    if (found >= 1000) in_.unread("repeats of 1000 and more");
    if (in_.at > start) value = uint32_t(found);
    return in_.at > start;
  }

  Node group(int depth) {
    Node node;
    bool outer = in_.ignore_case;
    if (in_.take("?:")) {
      node = either(depth + 1);
    } else if (in_.take("?i:")) {
      in_.ignore_case = true;
      node = either(depth + 1);
    } else if (in_.sees("?=") || in_.sees("?!") || in_.sees("?>")) {
      const char kind = in_.text[in_.at + 1];
      in_.at += 2;
      node.kind = kind == '>' ? Node::Atomic : Node::Ahead;
      node.negative = kind == '!';
      node.parts.push_back(either(depth + 1));
    } else if (in_.sees("?<=") || in_.sees("?<!")) {
      in_.unread("lookbehind");
    } else if (in_.sees("?")) {
      in_.unread("groups with such a sign");
    } else {
      node = either(depth + 1);
    }
    in_.ignore_case = outer;
    if (!in_.take(")")) in_.wrong("a parenthesis is not closed");
    return node;
  }

  Node atom(int depth) {
    if (in_.take("(")) return group(depth);
    if (in_.take("[")) return set_of(read_class(in_));
    if (in_.take(".")) return set_of(others({{'\n', '\n'}}));
    if (in_.take("^")) return assertion('^');
    if (in_.take("$")) return assertion('$');
    if (in_.sees("*") || in_.sees("+") || in_.sees("?")) in_.wrong("it repeats nothing");
    if (in_.take("\\")) {
      if (in_.at_end()) in_.wrong("it ends with a backslash");
      const char kind = in_.text[in_.at];
      if (kind == 'A' || kind == 'Z' || kind == 'b' || kind == 'B') {
        ++in_.at;
        return assertion(kind);
      }
      return set_of(read_escape(in_));
    }
    return set_of(read_character(in_));
  }

  Node assertion(char place) {
    Node node;
    node.kind = Node::Assert;
    node.place = place;
    return node;
  }

  PatternText in_;
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
