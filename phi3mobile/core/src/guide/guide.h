// Constrained output: an answer that a JSON schema, a regex or a grammar allows, whole within its token limit, as
// phi3mobile/session/guidance.py. Which tokens may follow is llguidance's to say.
#pragma once

#include "base/json.h"
#include "guide/words.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

namespace phi3mobile {

// llguidance's grammars. InputError: what can't be used, and why.
Json json_grammar(const Json& schema, bool additional);  // of a JSON schema, an object or its text
Json regex_grammar(const std::string& pattern);          // texts that match as a whole (Rust's syntax, no lookaround)
Json lark_grammar(const std::string& text);              // its dialect, with a rule `start`

// Follows one answer at a time; `start` begins the next one.
class Guide {
 public:
  // InputError: nothing is allowed, or it is too much.
  Guide(const Json& grammar, std::shared_ptr<const GuideWords> words);

  // Begins an answer of at most `room` tokens, end not counted. InputError: none is known to be so short. at_start: the answer
  // is a text of its own, whose first space a sentencepiece vocabulary drops; else it continues one.
  void start(std::optional<int64_t> room, bool at_start);

  bool complete() { return matcher_->accepting(); }  // the answer so far is allowed as a whole
  bool finished() { return complete() && (matcher_->stopped() || closing_); }
  bool closing() const { return closing_; }  // the room is running out: only the shortest ending found is allowed

  // Logits with -inf for what may not follow; valid until the next call. InputError: nothing may.
  const float* mask(const float* logits, int64_t vocab, const std::unordered_set<int64_t>& eos);
  // Appends a token, which mask allowed. Gives the one appended in truth; none: the answer ends. InputError: it gave up.
  std::optional<int64_t> push(int64_t token);
  size_t accepts(const Ids& draft);  // how many of its first tokens may follow
  Ids forced();                      // the next tokens as far as there is no choice

 private:
  std::optional<Ids> ending_after(Matcher& after, int64_t token);

  std::shared_ptr<const GuideWords> words_;
  std::optional<Matcher> at_start_, within_;  // before the first token; at_start_: where a space is dropped
  const Matcher* begun_ = nullptr;            // the one that `start` chose
  std::optional<Matcher> matcher_;
  Ids pushed_;  // until it closes
  std::optional<int64_t> room_;
  std::optional<Ids> ending_;  // tokens that complete the answer, as far as known; at most room_
  bool closing_ = false;
  std::vector<uint32_t> allowed_;
  std::vector<float> masked_;
};

}  // namespace phi3mobile
