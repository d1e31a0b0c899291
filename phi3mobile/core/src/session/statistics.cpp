#include "session/statistics.h"

#include <algorithm>
#include <vector>

namespace phi3mobile {

namespace {

// numpy's percentile with linear interpolation, of sorted values.
double percentile(const std::vector<double>& sorted, double percent) {
  if (sorted.empty()) return 0;
  const double at = percent / 100 * double(sorted.size() - 1);
  const size_t low = size_t(at), high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (sorted[high] - sorted[low]) * (at - double(low));
}

}  // namespace

Json statistics_of(const Answer& a, int64_t dropped) {
  std::vector<double> gaps(a.times.empty() ? a.times.end() : a.times.begin() + 1, a.times.end());
  double decode_s = -a.refill_s;
  for (const double gap : gaps) decode_s += gap;
  decode_s = std::max(0.0, decode_s);
  std::sort(gaps.begin(), gaps.end());
  Json found{Json::Object()};
  found.set("finish_reason", a.finish_reason);
  found.set("prompt_tokens", a.prompt_tokens);
  found.set("reused_tokens", a.reused_tokens.value_or(0));
  found.set("prefilled_tokens", a.prefilled_tokens);
  found.set("generated_tokens", a.generated_tokens);
  found.set("ttft_s", a.times.empty() ? 0.0 : a.times.front());
  found.set("prefill_s", a.prefill_s);
  found.set("decode_s", decode_s);
  found.set("engine_s", a.engine_s());
  found.set("prefill_tokens_per_s", a.prefill_s > 0 ? double(a.prefilled_tokens) / a.prefill_s : 0.0);
  found.set("decode_tokens_per_s", decode_s > 0 ? double(gaps.size()) / decode_s : 0.0);
  found.set("interval_p50_ms", 1000 * percentile(gaps, 50));
  found.set("interval_p95_ms", 1000 * percentile(gaps, 95));
  found.set("long_switch", a.long_switch);
  found.set("forwards", a.forwards);
  found.set("drafted", a.drafted);
  found.set("accepted", a.accepted);
  found.set("dropped_messages", dropped);
  return found;
}

}  // namespace phi3mobile
