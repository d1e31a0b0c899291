// Lookup decoding: drafts by finding the last n-gram earlier in prompt and answer, as phi3mobile/session/drafts/lookup.py.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace phi3mobile {

class Lookup {
 public:
  explicit Lookup(const std::vector<int64_t>& tokens);

  void push(int64_t token);
  // At most `limit` tokens that may come next; none when nothing matches or while resting.
  std::vector<int64_t> propose(int64_t limit);
  // How many of the drafted tokens were right.
  void feedback(size_t drafted, size_t accepted);

 private:
  static constexpr size_t kShortest = 2, kHashed = 4, kLongest = 8;
  using Gram = std::array<int64_t, kHashed>;  // the last tokens; what a shorter one lacks is no token
  struct Hash {
    size_t operator()(const Gram& gram) const;
  };
  struct Rest {
    size_t until = 0, next = 4;
  };

  Gram gram(size_t count) const;
  std::pair<size_t, size_t> match() const;

  std::vector<int64_t> tokens_;
  std::unordered_map<Gram, size_t, Hash> after_;  // n-gram -> index of the token that last followed it
  std::array<Rest, 3> rests_;                     // of the drafts of each length
  size_t proposed_ = 0;
};

}  // namespace phi3mobile
