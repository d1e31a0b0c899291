#include "session/random.h"

#include <random>

namespace phi3mobile {

namespace {

constexpr int kPool = 4;

uint32_t hashed(uint32_t value, uint32_t& constant, uint32_t multiplier) {
  value ^= constant;
  constant *= multiplier;
  value *= constant;
  return value ^ value >> 16;
}

uint32_t mixed(uint32_t x, uint32_t y) {
  const uint32_t value = 0xCA01F9DDu * x - 0x4973F715u * y;
  return value ^ value >> 16;
}

// SeedSequence(entropy).generate_state(4, uint64) of an entropy of up to 64 bits.
void generate(uint64_t entropy, uint64_t (&found)[4]) {
  uint32_t pool[kPool], constant = 0x43B0D7E5u;
  const uint32_t words[kPool] = {uint32_t(entropy), uint32_t(entropy >> 32), 0, 0};
  for (int i = 0; i < kPool; ++i) pool[i] = hashed(words[i], constant, 0x931E8875u);
  for (int from = 0; from < kPool; ++from) {
    for (int to = 0; to < kPool; ++to) {
      if (from != to) pool[to] = mixed(pool[to], hashed(pool[from], constant, 0x931E8875u));
    }
  }
  constant = 0x8B51F9DDu;
  uint32_t state[8];
  for (int i = 0; i < 8; ++i) state[i] = hashed(pool[i % kPool], constant, 0x58F38DEDu);
  for (int i = 0; i < 4; ++i) found[i] = uint64_t(state[2 * i + 1]) << 32 | state[2 * i];
}

uint64_t any_seed() {
  std::random_device device;
  return uint64_t(device()) << 32 | device();
}

}  // namespace

Random::Random(std::optional<int64_t> seed) {
  uint64_t words[4];
  generate(seed ? uint64_t(*seed) : any_seed(), words);
  increment_ = ((unsigned __int128)(words[2]) << 64 | words[3]) << 1 | 1;
  step();
  state_ += (unsigned __int128)(words[0]) << 64 | words[1];
  step();
}

void Random::step() {
  const unsigned __int128 multiplier = (unsigned __int128)(2549297995355413924ull) << 64 | 4865540595714422341ull;
  state_ = state_ * multiplier + increment_;
}

double Random::next() {
  step();
  const uint64_t folded = uint64_t(state_ >> 64) ^ uint64_t(state_);
  const int turn = int(state_ >> 122);
  const uint64_t bits = folded >> turn | folded << (-turn & 63);
  return double(bits >> 11) * 0x1p-53;
}

}  // namespace phi3mobile
