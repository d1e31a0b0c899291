#include "text/added.h"

#include "base/utf8.h"
#include "text/unicode.h"

#include <algorithm>
#include <utility>

namespace phi3mobile {

namespace {

bool is_word(uint32_t code) { return code == '_' || is_alphanumeric(code); }

bool word_before(std::string_view text, size_t at) { return at > 0 && is_word(previous_character(text, at)); }

bool word_at(std::string_view text, size_t at) { return at < text.size() && is_word(next_character(text, at)); }

}  // namespace

AnyOf::AnyOf(const std::vector<std::string>& texts) {
  for (size_t i = 0; i < texts.size(); ++i) {
    if (texts[i].empty()) continue;
    uint64_t node = 0;
    for (const char c : texts[i]) {
      const auto [entry, is_new] = next_.try_emplace(node << 8 | uint8_t(c), uint32_t(number_of_.size()));
      if (is_new) number_of_.push_back(-1);
      node = entry->second;
    }
    number_of_[node] = int64_t(i);
    starts_[uint8_t(texts[i][0])] = true;
    ++count_;
  }
}

bool AnyOf::find(std::string_view in, size_t from, size_t& start, size_t& stop, size_t& number) const {
  if (none()) return false;
  for (start = from; start < in.size(); ++start) {
    if (!starts_[uint8_t(in[start])]) continue;
    bool found = false;
    uint64_t node = 0;
    for (size_t at = start; at < in.size(); ++at) {
      const auto next = next_.find(node << 8 | uint8_t(in[at]));
      if (next == next_.end()) break;
      node = next->second;
      if (number_of_[node] < 0) continue;
      found = true;
      stop = at + 1;
      number = size_t(number_of_[node]);
    }
    if (found) return true;
  }
  return false;
}

AddedFinder::AddedFinder(std::vector<AddedToken> tokens, const std::vector<std::string>& texts)
    : tokens_(std::move(tokens)), any_(texts) {}

std::vector<Stretch> AddedFinder::find(std::string_view text, bool apart) const {
  std::vector<Stretch> found;
  size_t done = 0, start, stop, number;
  for (size_t from = 0; any_.find(text, from, start, stop, number);) {
    from = stop;
    const AddedToken& token = tokens_[number];
    if (apart && start < done) continue;
    if (token.single_word && (word_before(text, start) || word_at(text, stop))) continue;
    if (token.lstrip) start = std::max(done, without_trailing_space(text.substr(0, start)).size());
    if (token.rstrip) stop = text.size() - without_leading_space(text.substr(stop)).size();
    if (done < start) found.push_back({text.substr(done, start - done), nullptr});
    found.push_back({{}, &token});
    done = stop;
  }
  if (done < text.size()) found.push_back({text.substr(done), nullptr});
  return found;
}

}  // namespace phi3mobile
