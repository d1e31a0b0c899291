// Whether an answer has begun to repeat itself, as phi3mobile/session/repetition.py.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

namespace phi3mobile {

class Repetition {
 public:
  Repetition() { recent_.fill(-1); }

  // Appends a token; true: the answer ends in a block of up to 256 tokens that stands there four times, 64 tokens at least.
  bool push(int64_t token) {
    bool repeats = false;
    for (int64_t p = 1; p <= kLongest; ++p) {
      int64_t& equal = equal_[size_t(p)];
      equal = recent_[size_t((newest_ + p - 1) % kLongest)] == token ? equal + 1 : 0;
      repeats |= equal >= std::max<int64_t>(64, 3 * p);
    }
    newest_ = (newest_ + kLongest - 1) % kLongest;
    recent_[size_t(newest_)] = token;
    return repeats;
  }

 private:
  static constexpr int64_t kLongest = 256;
  std::array<int64_t, kLongest + 1> equal_{};  // [p]: so many last tokens equal the ones p before them
  std::array<int64_t, kLongest> recent_;       // the last tokens, a ring; newest_ is the last one's place
  int64_t newest_ = 0;
};

}  // namespace phi3mobile
