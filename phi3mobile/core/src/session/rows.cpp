#include "session/rows.h"

#include <algorithm>
#include <chrono>

namespace phi3mobile {

const float* Rows::forward(const int64_t* given, int64_t count, int64_t position, bool with_long) {
  const auto joined = [&](const float* logits, int64_t done, int64_t part) -> const float* {
    if (part == count) return logits;
    joined_.resize(size_t(count * engine.info.vocab));
    std::copy(logits, logits + part * engine.info.vocab, joined_.data() + done * engine.info.vocab);
    return joined_.data();
  };
  return in_parts(given, count, position, with_long, &Engine::forward, &Engine::forward_rows, joined);
}

const float* Rows::prefill(const int64_t* given, int64_t count, int64_t position, bool with_long) {
  const auto last = [](const float* logits, int64_t, int64_t) { return logits; };
  return in_parts(given, count, position, with_long, &Engine::prefill, &Engine::prefill_rows, last);
}

// Text and pictures one after the other, timed: an engine takes either. join(logits, done, part): what is given out of them so
// far.
template <class Join>
const float* Rows::in_parts(
    const int64_t* given, int64_t count, int64_t position, bool with_long, OfText of_text, OfRows of_rows, const Join& join) {
  tokens.resize(size_t(position));  // before the calls: if one fails, these rows are unknown
  is_long = with_long;
  farthest = std::max(position ? farthest : 0, position + count);
  const float* logits = nullptr;
  for (int64_t done = 0; done < count;) {
    const int64_t* first = given + done;
    const int64_t at = position + done;
    const bool seen = *first < 0;
    const int64_t part = std::find_if(first, given + count, [&](int64_t token) { return (token < 0) != seen; }) - first;
    const float* rows = seen ? sight->rows(first, part) : nullptr;
    const auto start = std::chrono::steady_clock::now();
    logits = rows ? (engine.*of_rows)(rows, part, at, is_long) : (engine.*of_text)(first, part, at, is_long);
    engine_s += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    logits = join(logits, done, part);
    done += part;
  }
  tokens.insert(tokens.end(), given, given + count);
  return logits;
}

int64_t Rows::common(const std::vector<int64_t>& given) const {
  const size_t most = std::min(tokens.size(), given.size());
  return std::mismatch(tokens.begin(), tokens.begin() + std::ptrdiff_t(most), given.begin()).first - tokens.begin();
}

bool Rows::reaches(int64_t position) const {
  return position == 0 || !engine.info.back || farthest - position <= *engine.info.back;
}

void Rows::clear() {
  tokens.clear();
  engine.reset();
}

}  // namespace phi3mobile
