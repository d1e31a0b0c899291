// A tokenizer's vocabulary as llguidance wants it, and the search for tokens that complete a guided answer, as
// phi3mobile/session/completion.py.
#pragma once

#include "guide/llguidance.h"
#include "text/tokenizer.h"

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace phi3mobile {

using Ids = std::vector<int64_t>;

// Whether the answer is complete with `tokens` from the matcher's state on.
bool completes(Matcher& matcher, const Ids& tokens);

class GuideWords {
 public:
  static constexpr int kSteps = 400, kStepsAtStart = 4000;  // states that a search looks at, about 0.1 ms each

  explicit GuideWords(std::shared_ptr<const Tokenizer> tokenizer);

  // Of an answer; is_error() if it can't be used. drops_space: its first one is not shown.
  Matcher matcher(const Json& grammar, bool drops_space) const;
  // Whether a text that starts with the vocabulary's space is shown without it, as sentencepiece's are.
  bool drops_space() const;
  // Tokens that complete the answer, at most `room`; none if so many states don't lead to any. Near the shortest, not always
  // the shortest. `known` completed an earlier state: the ending may end with it.
  std::optional<Ids> ending(Matcher& matcher, size_t room, const Ids& known = {}, int steps = kSteps) const;
  size_t size() const { return tokens_.size(); }

 private:
  Ids spell(std::string_view text) const;
  std::string joined(const Ids& ids) const;
  std::optional<Ids> search(Matcher& start, size_t room, const Ids& known, int steps, bool straight) const;
  std::vector<std::pair<double, int64_t>> preferred(const std::vector<uint32_t>& allowed) const;
  std::vector<int64_t> ranks(std::string_view first) const;

  std::shared_ptr<const Tokenizer> tokenizer_;
  std::vector<std::string> tokens_;
  std::unordered_map<std::string_view, int64_t> ids_;
  size_t longest_ = 0;
  Ids tried_, letters_;
  std::array<std::vector<int64_t>, 2> ranks_;
  std::unique_ptr<GuideTokens> vocabulary_;
};

inline bool is_in(const std::vector<uint32_t>& bits, int64_t id) { return bits[size_t(id) / 32] >> id % 32 & 1; }

}  // namespace phi3mobile
