// numpy's default_rng: PCG64 (XSL-RR) seeded by SeedSequence. The same seed draws the same numbers as Python's session.
#pragma once

#include <cstdint>
#include <optional>

namespace phi3mobile {

class Random {
 public:
  // A seed of 0 or more; none: a new one each time.
  explicit Random(std::optional<int64_t> seed);

  // The next number of [0, 1), 53 bits of it.
  double next();

 private:
  void step();

  unsigned __int128 state_ = 0, increment_ = 0;
};

}  // namespace phi3mobile
