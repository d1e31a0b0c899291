#include "guide/words.h"

#include "base/error.h"
#include "base/utf8.h"

#include <algorithm>
#include <numeric>
#include <queue>
#include <set>
#include <tuple>

namespace phi3mobile {

namespace {

constexpr size_t kFew = 64;  // so many allowed tokens are all tried; of more, those of one byte, of closing signs or a's only
constexpr std::string_view kClosing = "\"}]";
// First bytes in the order they are tried, where a letter may follow and where none may (JSON's structure, numbers, ...).
constexpr std::string_view kInText = "\"a@.0-_/,:", kBetween = "}]\",:0";
constexpr std::string_view kPlain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
constexpr double kStepCost = 0.05;  // of a token, where the n-th byte to start with costs n / 10
constexpr double kSameStart = 0.5;  // of a token that starts as a better one does
constexpr size_t kRests = 8;        // so many of the first tokens of a known ending may have become superfluous
constexpr int kLoops[] = {0, 100};  // most tokens in a row that change nothing, such as one more letter; straight: 100

bool only(std::string_view text, std::string_view set) { return text.find_first_not_of(set) == text.npos; }

using Mark = std::vector<uint32_t>;

struct State {
  std::shared_ptr<Matcher> matcher;
  Ids path;                              // tokens that led here
  std::shared_ptr<std::set<Mark>> seen;  // masks of its followers
  Mark mark;                             // its own mask; while it waits, its parent's
  int loops = 0;                         // tokens in a row that changed nothing, such as one more letter
};

struct Waiting {
  double cost;
  int64_t count;
  std::shared_ptr<const State> state;
  int64_t token;  // that leads on from it; -1: none
  // The cheapest first; of equals the last.
  bool operator<(const Waiting& other) const { return std::tie(cost, other.count) > std::tie(other.cost, count); }
};

}  // namespace

bool completes(Matcher& matcher, const Ids& tokens) {
  if (tokens.empty()) return matcher.accepting();
  return matcher.validate(tokens, true) == tokens.size() + 1;
}

GuideWords::GuideWords(std::shared_ptr<const Tokenizer> tokenizer) : tokenizer_(std::move(tokenizer)) {
  for (int64_t id = 0; id < tokenizer_->vocab_size(); ++id) {
    tokens_.emplace_back(tokenizer_->is_control(id) ? "" : tokenizer_->token_bytes(id));
  }
  std::string_view run;
  for (size_t id = 0; id < tokens_.size(); ++id) {
    const std::string& token = tokens_[id];
    if (token.empty()) continue;
    ids_.emplace(token, int64_t(id));
    longest_ = std::max(longest_, token.size());
    if (only(token, "a") && token.size() > run.size()) run = token;
    if (token == "a") letters_.push_back(int64_t(id));
  }
  for (size_t id = 0; id < tokens_.size(); ++id) {
    const std::string& token = tokens_[id];
    if (!token.empty() && (token.size() == 1 || only(token, kClosing) || token == run)) tried_.push_back(int64_t(id));
  }
  ranks_ = {ranks(kBetween), ranks(kInText)};
  vocabulary_ = std::make_unique<GuideTokens>(tokens_, [this](std::string_view text) {
    const Ids ids = spell(text);
    return std::vector<uint32_t>(ids.begin(), ids.end());
  });
}

// Place of each token in the order of preference; `first` are the best bytes to start with.
std::vector<int64_t> GuideWords::ranks(std::string_view first) const {
  std::string order(first);
  order += kPlain;
  for (int byte = 33; byte < 127; ++byte) order += char(byte);
  for (int byte = 0; byte < 256; ++byte) order += char(byte);
  const std::string pleasant = std::string(kPlain) + std::string(kClosing) + ",:";
  std::array<size_t, 256> place;
  int places = 0;
  std::fill(place.begin(), place.end(), 256);
  for (const char byte : order) {
    if (size_t& known = place[uint8_t(byte)]; known == 256) known = size_t(places++);
  }
  using Rank = std::tuple<size_t, bool, bool, int64_t, size_t>;
  std::vector<Rank> keys;
  for (size_t id = 0; id < tokens_.size(); ++id) {
    const std::string_view token = tokens_[id];
    // Of those that start alike, what only closes; then the longest of the plain ones: often a whole name.
    keys.emplace_back(token.empty() ? 256 : place[uint8_t(token[0])], !only(token, kClosing), !only(token, pleasant),
        -int64_t(token.size()), id);
  }
  std::sort(keys.begin(), keys.end());
  std::vector<int64_t> found(tokens_.size());
  for (size_t i = 0; i < keys.size(); ++i) found[std::get<4>(keys[i])] = int64_t(i);
  return found;
}

std::string GuideWords::joined(const Ids& ids) const {
  std::string text;
  for (const int64_t id : ids) text += tokens_[size_t(id)];
  return text;
}

// The ids that spell `text` exactly, as the tokenizer would in the middle of an answer.
Ids GuideWords::spell(std::string_view text) const {
  if (invalid_utf8(text) == text.size()) {
    for (const char* before : {"", "\n"}) {  // a sentencepiece tokenizer puts a space before what it takes for a beginning
      try {
        const Ids start = tokenizer_->encode(before, false);
        Ids ids = tokenizer_->encode(before + std::string(text), false);
        ids.erase(ids.begin(), ids.begin() + std::ptrdiff_t(std::min(start.size(), ids.size())));
        if (joined(ids) == text) return ids;
      } catch (const InputError&) {  // it reads as a control token
      }
    }
  }
  Ids ids;
  while (!text.empty()) {
    size_t length = std::min(longest_, text.size());
    while (length && !ids_.count(text.substr(0, length))) --length;
    if (!length) return {};  // the vocabulary has no such byte
    ids.push_back(ids_.at(text.substr(0, length)));
    text.remove_prefix(length);
  }
  return ids;
}

Matcher GuideWords::matcher(const Json& grammar, bool drops_space) const {
  if (!drops_space) return Matcher(*vocabulary_, grammar);
  Json shown{Json::Object()}, inner = grammar["grammars"].array()[0], both{Json::Object()};
  shown.set("name", "shown");
  shown.set("lark_grammar", "start: \" \" @answer\n");
  inner.set("name", "answer");
  both.set("grammars", Json::Array{std::move(shown), std::move(inner)});
  return Matcher(*vocabulary_, both);
}

bool GuideWords::drops_space() const {
  for (size_t id = 0; id < tokens_.size(); ++id) {
    if (tokens_[id].substr(0, 1) == " ") return tokenizer_->decode({int64_t(id)}).substr(0, 1) != " ";
  }
  return false;
}

std::optional<Ids> GuideWords::ending(Matcher& matcher, size_t room, const Ids& known, int steps) const {
  auto found = search(matcher, room, known, steps, false);
  return found ? found : search(matcher, room, known, steps, true);
}

// Best first: the fewest deviations from the preferred tokens. Every token has a cost too, which leads out of a recursion; or,
// `straight`, none has, which finds long endings.
std::optional<Ids> GuideWords::search(Matcher& start, size_t room, const Ids& known, int steps, bool straight) const {
  std::vector<Ids> rests{{}};
  for (size_t i = 0; i < std::min(known.size(), kRests); ++i)
    rests.emplace_back(known.begin() + std::ptrdiff_t(i), known.end());
  const auto fresh = [] { return std::make_shared<std::set<Mark>>(); };
  int64_t count = 0;
  std::priority_queue<Waiting> queue;
  queue.push({0.0, 0, std::make_shared<State>(State{std::make_shared<Matcher>(start), {}, fresh(), {}, 0}), -1});
  for (int step = 0; step < steps && !queue.empty(); ++step) {
    const Waiting next = queue.top();
    queue.pop();
    auto siblings = fresh();
    auto state = std::make_shared<State>(*next.state);
    if (next.token >= 0) {
      state->matcher = std::make_shared<Matcher>(*next.state->matcher);
      if (!state->matcher->consume({next.token})) continue;
      siblings = next.state->seen;
      state->path.push_back(next.token);
      state->seen = fresh();
    }
    for (const Ids& rest : rests) {
      if (state->path.size() + rest.size() > room || !completes(*state->matcher, rest)) continue;
      Ids ids = state->path;
      ids.insert(ids.end(), rest.begin(), rest.end());
      Ids shorter = spell(joined(ids));
      return shorter.size() < ids.size() && completes(start, shorter) ? shorter : ids;
    }
    if (state->path.size() >= room) continue;
    const Mark& mark = state->matcher->allowed();
    if (!siblings->insert(mark).second) continue;  // such as one more letter: a sibling has the same followers
    state->loops = mark == state->mark ? state->loops + 1 : 0;
    if (state->loops > kLoops[straight]) continue;
    state->mark = mark;
    const double cost = next.cost + (straight ? 0.0 : kStepCost);
    for (const auto& [choice, token] : preferred(mark)) queue.push({cost + choice, ++count, state, token});
  }
  return std::nullopt;
}

// Costs and ids of the allowed tokens worth a try; what ends something soon is cheapest.
std::vector<std::pair<double, int64_t>> GuideWords::preferred(const std::vector<uint32_t>& allowed) const {
  Ids ids;
  for (size_t id = 0; id < tokens_.size(); ++id) {
    if (is_in(allowed, int64_t(id))) ids.push_back(int64_t(id));
  }
  if (ids.size() > kFew) {
    Ids some;
    std::copy_if(tried_.begin(), tried_.end(), std::back_inserter(some), [&](int64_t id) { return is_in(allowed, id); });
    if (!some.empty()) ids = std::move(some);
  }
  const bool in_text = std::any_of(letters_.begin(), letters_.end(), [&](int64_t id) { return is_in(allowed, id); });
  const auto& rank = ranks_[in_text];
  std::sort(ids.begin(), ids.end(), [&](int64_t a, int64_t b) { return rank[size_t(a)] < rank[size_t(b)]; });
  std::array<double, 256> costs;
  costs.fill(-1);
  int starts = 0;
  std::vector<std::pair<double, int64_t>> choices;
  for (const int64_t id : ids) {
    double& cost = costs[uint8_t(tokens_[size_t(id)][0])];
    const bool is_new = cost < 0;
    if (is_new) cost = 0.1 * starts++;
    choices.emplace_back(is_new ? cost : cost + kSameStart, id);
  }
  return choices;
}

}  // namespace phi3mobile
