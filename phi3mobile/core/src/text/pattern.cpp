#include "text/pattern.h"

#include "base/error.h"
#include "base/utf8.h"
#include "text/pattern_nodes.h"

#include <algorithm>
#include <utility>

namespace phi3mobile {

constexpr size_t kMostInstructions = 20'000;

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

Pattern::Pattern(std::string_view text) { Compiler(*this).whole(parsed(text)); }

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
