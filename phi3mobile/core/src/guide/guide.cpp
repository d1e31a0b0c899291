#include "guide/guide.h"

#include "base/error.h"
#include "guide/engine.h"
#include "guide/lines.h"
#include "guide/pattern.h"
#include "guide/schema.h"
#include "text/repr.h"
#include "text/unicode.h"

#include <algorithm>
#include <limits>

namespace phi3mobile {

namespace {

constexpr int64_t kAmple = 128;      // with so many tokens more than the ending needs, one after which none was found is taken
constexpr int64_t kFirst = 1 << 13;  // tokens of the longest first ending looked for
constexpr int64_t kRetry = 8;        // without a known ending, look for one every so many tokens

// What llguidance says, without its state.
std::string line(const std::string& message) {
  const std::string said = cut(one_line(message.substr(0, message.find("<state>"))), 200);
  return said.empty() || said.rfind("NoExtension", 0) == 0 ? "no token of the vocabulary may follow" : said;
}

InputError stuck(const std::string& reason) {
  return InputError("the answer can't be continued as asked (" + reason + "); simplify the schema, regex or grammar");
}

Json checked(const char* name, std::string text, const char* what) {
  Json one{Json::Object()}, grammar{Json::Object()};
  if (name) one.set("name", name);
  one.set("lark_grammar", std::move(text));
  grammar.set("grammars", Json::Array{std::move(one)});
  if (const std::string wrong = grammar_refusal(grammar); !wrong.empty()) {
    throw InputError("the " + std::string(what) + " can't be used: " + line(wrong) + "; correct or simplify it");
  }
  return grammar;
}

const std::string& some(const std::string& text, const char* what) {
  if (stripped(text).empty()) {
    throw InputError("the " + std::string(what) + " is " + cut(repr(text), 80) + "; it must be a text that is not empty");
  }
  return text;
}

// A regex between the slashes of a Lark grammar, as llguidance writes it there.
std::string between_slashes(const std::string& regex) {
  std::string made;
  bool escaped = false;
  for (const char c : regex) {
    if (c == '\\' && !escaped) {
      escaped = true;
      continue;
    }
    if (c == '/' || c == '\n' || c == '\r' || c == '\t')
      made += c == '/' ? "\\/" : c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t";
    else
      made += escaped ? std::string{'\\', c} : std::string{c};
    escaped = false;
  }
  return made;
}

bool allows_any(Matcher& matcher) {
  const auto& bits = matcher.allowed();
  return matcher.accepting() || std::any_of(bits.begin(), bits.end(), [](uint32_t word) { return word != 0; });
}

}  // namespace

Json json_grammar(const Json& schema, bool additional) { return grammar_of(followed(schema, additional)); }

Json regex_grammar(const std::string& pattern) {
  some(pattern, "regex");
  if (const int64_t count = least(pattern); count > kLongest) {
    throw InputError("the regex asks for " + std::to_string(count) + " characters; " + std::to_string(kLongest) +
                     " can be asked for: ask for fewer");
  }
  return checked("regex", "start: /" + between_slashes(pattern) + "/", "regex");
}

Json lark_grammar(const std::string& text) { return checked(nullptr, some(text, "grammar"), "grammar"); }

Guide::Guide(const Json& grammar, std::shared_ptr<const GuideWords> words) : words_(std::move(words)) {
  const auto usable = [&](Matcher made) {
    Matcher first = made;
    if (made.is_error() || !allows_any(first)) {
      throw InputError("no answer can be guided so: " + line(first.error()) + "; simplify it");
    }
    return made;
  };
  within_ = usable(words_->matcher(grammar, false));
  at_start_ = words_->drops_space() ? usable(words_->matcher(grammar, true)) : *within_;
  matcher_ = *at_start_;
}

void Guide::start(std::optional<int64_t> room, bool at_start) {
  begun_ = at_start ? &*at_start_ : &*within_;
  matcher_ = *begun_;
  pushed_.clear();
  room_ = room;
  closing_ = false;
  ending_.reset();
  if (!room) return;
  auto ending = words_->ending(*matcher_, kFirst, {}, GuideWords::kStepsAtStart);
  if (ending && int64_t(ending->size()) > *room) {
    auto shorter = words_->ending(*matcher_, size_t(*room));
    if (!shorter) {
      throw InputError(std::to_string(*room) + " tokens are left for the answer; the shortest one found that is allowed has " +
                       std::to_string(ending->size()) +
                       ": raise max_tokens (--max-tokens), shorten the prompt or use a larger context");
    }
    ending = std::move(shorter);
  }
  ending_ = std::move(ending);
}

const float* Guide::mask(const float* logits, int64_t vocab, const std::unordered_set<int64_t>& eos) {
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  allowed_.assign((size_t(std::max(vocab, int64_t(words_->size()))) + 32) / 32, 0);
  const auto set = [&](int64_t id, bool may) {
    const uint32_t bit = uint32_t(1) << id % 32;
    (may ? allowed_[size_t(id) / 32] |= bit : allowed_[size_t(id) / 32] &= ~bit);
  };
  if (!closing_) {
    const auto& bits = matcher_->allowed();
    std::copy(bits.begin(), bits.begin() + std::ptrdiff_t(std::min(bits.size(), allowed_.size())), allowed_.begin());
  } else if (ending_ && !ending_->empty()) {
    set(ending_->front(), true);
  }
  const bool whole = complete();
  for (const int64_t id : eos) {
    if (id >= 0 && id < vocab) set(id, whole);
  }
  bool any = false;
  masked_.assign(size_t(vocab), kNever);
  for (int64_t first = 0; first < vocab; first += 32) {
    const uint32_t word = allowed_[size_t(first) / 32];
    if (!word) continue;
    for (int64_t id = first; id < std::min(vocab, first + 32); ++id) {
      if (!(word >> (id - first) & 1)) continue;
      masked_[size_t(id)] = logits[id];
      any = true;
    }
  }
  if (!any) throw stuck(line(matcher_->error()));
  return masked_.data();
}

std::optional<int64_t> Guide::push(int64_t token) {
  if (!closing_) {
    const bool taken = matcher_->consume({token});
    auto ending = taken ? ending_after(*matcher_, token) : std::nullopt;
    const bool ample = room_ && ending_ && *room_ - int64_t(ending_->size()) > kAmple;
    if (taken && (ending || !ending_ || ample)) {
      pushed_.push_back(token);
      ending_ = std::move(ending);
      if (room_) --*room_;
      return token;
    }
    if (!ending_) throw stuck(line(matcher_->error()));
    closing_ = true;
    matcher_ = *begun_;  // as if the token had not been
    matcher_->consume(pushed_);
  }
  if (!ending_ || ending_->empty()) return std::nullopt;
  token = ending_->front();
  ending_->erase(ending_->begin());
  matcher_->consume({token});
  return token;
}

size_t Guide::accepts(const Ids& draft) { return draft.empty() ? 0 : matcher_->validate(draft); }

Ids Guide::forced() { return closing_ ? ending_.value_or(Ids()) : matcher_->forced(); }

// An ending from `after`, which `token` led to, that fits the room; none: unknown.
std::optional<Ids> Guide::ending_after(Matcher& after, int64_t token) {
  if (!room_ || (!ending_ && *room_ % kRetry)) return std::nullopt;
  const size_t room = size_t(std::max<int64_t>(*room_ - 1, 0));
  if (!ending_) return words_->ending(after, room);
  const Ids& known = *ending_;
  const auto rest = [&](size_t from) { return Ids(known.begin() + std::ptrdiff_t(from), known.end()); };
  if (!known.empty() && known.front() == token) return rest(1);
  // Mostly what ended the answer before, or its rest, still does: a letter more in a string needs no search.
  for (size_t from = known.size() > room ? known.size() - room : 0; from < known.size(); ++from) {
    if (Ids ids = rest(from); completes(after, ids)) return ids;
  }
  return words_->ending(after, room, known);
}

}  // namespace phi3mobile
