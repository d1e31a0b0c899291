#include "text/pattern.h"

#include "base/error.h"
#include "base/utf8.h"

#include <algorithm>

namespace phi3mobile {

namespace {

constexpr size_t kNone = size_t(-1);
constexpr size_t kMostSteps = 20'000'000;  // dead ends of one match: a pattern that runs wild

bool is_word(uint32_t code) { return code == '_' || is_alphanumeric(code); }

}  // namespace

CharacterSet::CharacterSet(const Ranges& ranges) : bits_(0x10000 / 64) {
  for (const auto& [first, last] : ranges) {
    for (uint32_t code = first; code <= last && code < 0x10000; ++code) bits_[code >> 6] |= uint64_t(1) << (code & 63);
    if (last >= 0x10000) above_.emplace_back(std::max<uint32_t>(first, 0x10000), last);
    if (last >= 0x80) beyond_ascii_ = true;
  }
}

bool CharacterSet::has_above(uint32_t code) const {
  const auto after =
      std::upper_bound(above_.begin(), above_.end(), code, [](uint32_t c, auto& range) { return c < range.first; });
  return after != above_.begin() && code <= after[-1].second;
}

bool Matches::next() {
  for (size_t at = from_; at <= text_.size();) {
    const bool possible = at < text_.size() && pattern_.starts_[uint8_t(text_[at])];
    if (possible || pattern_.may_be_empty_) {
      choices_.clear();
      steps_ = 0;
      const size_t end = run(0, at);
      if (end != kNone) {
        start = at;
        stop = from_ = end;
        forbidden_ = end == at ? end : kNone;
        return true;
      }
    }
    forbidden_ = kNone;
    if (at == text_.size()) break;
    ++at;
    while (at < text_.size() && (uint8_t(text_[at]) & 0xC0) == 0x80) ++at;
  }
  from_ = text_.size() + 1;
  return false;
}

bool Matches::takes(const CharacterSet& set, size_t& at) const {
  if (at == text_.size()) return false;
  size_t after = at;
  if (!set.has(next_character(text_, after))) return false;
  at = after;
  return true;
}

// Where the match of code_[pc..] ends; kNone: there is none.
size_t Matches::run(uint32_t pc, size_t at) {
  const size_t bottom = choices_.size();
  for (;;) {
    const Instruction& step = pattern_.code_[pc];
    bool dead = false;
    switch (step.op) {
      case Instruction::One:
        dead = !takes(pattern_.sets_[step.set], at);
        ++pc;
        break;
      case Instruction::Many: {
        const CharacterSet& set = pattern_.sets_[step.set];
        const uint32_t eager = step.mode == Instruction::Lazy ? step.least : step.most;
        uint32_t count = 0;
        size_t enough = at;
        while (count < eager && takes(set, at)) {
          if (++count == step.least) enough = at;
        }
        dead = count < step.least;
        ++pc;
        if (dead) break;
        if (step.mode == Instruction::Greedy && at > enough) choices_.push_back({pc, 0, enough, at, Choice::Shorter});
        if (step.mode == Instruction::Lazy && step.most > step.least) {
          choices_.push_back({pc, step.set, at, step.most - step.least, Choice::Longer});
        }
        break;
      }
      case Instruction::Fork: {
        const bool possible = step.first < 0 || (at < text_.size() && pattern_.firsts_[size_t(step.first)][uint8_t(text_[at])]);
        if (!possible) {
          pc = step.to;
          break;
        }
        const bool lazy = step.mode == Instruction::Lazy;
        choices_.push_back({lazy ? pc + 1 : step.to, 0, at, at, Choice::Once});
        pc = lazy ? step.to : pc + 1;
        break;
      }
      case Instruction::Jump:
        pc = step.to;
        break;
      case Instruction::Ahead:
        dead = (run(pc + 1, at) != kNone) == step.negative;
        pc = step.to;
        break;
      case Instruction::Atomic: {
        const size_t end = run(pc + 1, at);
        dead = end == kNone;
        at = dead ? at : end;
        pc = step.to;
        break;
      }
      case Instruction::Assert:
        dead = !holds(step.place, at);
        ++pc;
        break;
      case Instruction::Matched: {
        const bool whole = pc + 1 == pattern_.code_.size();
        dead = whole && at == forbidden_;
        if (dead) break;
        choices_.resize(bottom);
        return at;
      }
    }
    if (dead && !retreat(bottom, pc, at)) return kNone;
  }
}

// Goes back to the last choice above `bottom`; false: there is none.
bool Matches::retreat(size_t bottom, uint32_t& pc, size_t& at) {
  if (++steps_ > kMostSteps) throw InputError("the tokenizer's pattern takes too long on this text: use another tokenizer");
  while (choices_.size() > bottom) {
    Choice& choice = choices_.back();
    pc = choice.pc;
    if (choice.kind == Choice::Once) {
      at = choice.low;
      choices_.pop_back();
      return true;
    }
    if (choice.kind == Choice::Shorter) {
      previous_character(text_, choice.high);
      at = choice.high;
      if (choice.high == choice.low) choices_.pop_back();
      return true;
    }
    if (takes(pattern_.sets_[choice.set], choice.low)) {
      at = choice.low;
      if (--choice.high == 0) choices_.pop_back();
      return true;
    }
    choices_.pop_back();
  }
  return false;
}

bool Matches::holds(char place, size_t at) const {
  const auto word_at = [&](size_t i) { return i < text_.size() && is_word(next_character(text_, i)); };
  const auto word_before = [&](size_t i) { return i > 0 && is_word(previous_character(text_, i)); };
  switch (place) {
    case '^':
    case 'A':
      return at == 0;
    case 'Z':
      return at == text_.size();
    case '$':
      return at == text_.size() || (at + 1 == text_.size() && text_[at] == '\n');
    case 'b':
      return word_at(at) != word_before(at);
    default:  // 'B', which is never true of an empty text
      return !text_.empty() && word_at(at) == word_before(at);
  }
}

}  // namespace phi3mobile
