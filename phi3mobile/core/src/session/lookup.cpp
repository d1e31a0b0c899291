#include "session/lookup.h"

#include <algorithm>
#include <limits>

namespace phi3mobile {

namespace {
constexpr int64_t kLengths[] = {3, 7, 15};
constexpr size_t kFirstRest = 4, kLongestRest = 64;
}  // namespace

size_t Lookup::Hash::operator()(const Gram& gram) const {
  uint64_t hash = 0x9E3779B97F4A7C15ull;
  for (const int64_t token : gram) {
    hash = (hash ^ uint64_t(token)) * 0xFF51AFD7ED558CCDull;
    hash ^= hash >> 33;
  }
  return size_t(hash);
}

Lookup::Lookup(const std::vector<int64_t>& tokens) {
  for (const int64_t token : tokens) push(token);
}

Lookup::Gram Lookup::gram(size_t count) const {
  Gram found;
  found.fill(std::numeric_limits<int64_t>::min());
  std::copy(tokens_.end() - std::ptrdiff_t(count), tokens_.end(), found.begin());
  return found;
}

void Lookup::push(int64_t token) {
  // Entered only now: each entry has a token to propose and is no match of itself.
  for (size_t n = kShortest; n <= std::min(kHashed, tokens_.size()); ++n) after_[gram(n)] = tokens_.size();
  tokens_.push_back(token);
}

// Index of the token that followed the longest n-gram known, and how many tokens before it match; 0: none.
std::pair<size_t, size_t> Lookup::match() const {
  const size_t end = tokens_.size();
  for (size_t n = std::min(kHashed, end); n >= kShortest; --n) {
    const auto found = after_.find(gram(n));
    if (found == after_.end()) continue;
    const size_t start = found->second;
    while (n < std::min(kLongest, start) && tokens_[start - 1 - n] == tokens_[end - 1 - n]) ++n;
    return {start, n};
  }
  return {0, 0};
}

std::vector<int64_t> Lookup::propose(int64_t limit) {
  const auto [start, matched] = match();
  const size_t kind = size_t(matched >= kHashed) + size_t(matched >= kLongest), end = tokens_.size();
  if (matched == 0 || end < rests_[kind].until) return {};
  proposed_ = kind;
  const int64_t length = std::min(limit, kLengths[kind]);
  std::vector<int64_t> draft;
  for (size_t i = start; int64_t(i - start) < length; ++i) {  // past the end the draft quotes itself: a period goes on
    const int64_t token = i < end ? tokens_[i] : draft[i - end];
    if (token < 0) break;
    draft.push_back(token);
  }
  return draft;
}

void Lookup::feedback(size_t drafted, size_t accepted) {
  if (drafted == 0) return;
  Rest& rest = rests_[proposed_];
  if (4 * accepted < drafted) {
    rest = {tokens_.size() + rest.next, std::min(2 * rest.next, kLongestRest)};
  } else {
    rest = {0, std::max(kFirstRest, rest.next / 2)};
  }
}

}  // namespace phi3mobile
