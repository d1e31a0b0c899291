#include "session/stop_gate.h"

#include <algorithm>

namespace phi3mobile {

std::string StopGate::push(std::string_view more) {
  if (hit_) return "";
  std::string text = finish().append(more);
  size_t end = std::string::npos, start = 0;
  for (const std::string& stop : stops_) {
    const size_t at = text.find(stop);
    if (at == std::string::npos) continue;
    const size_t stop_end = at + stop.size();
    if (stop_end < end || (stop_end == end && at < start)) end = stop_end, start = at;
  }
  if (end != std::string::npos) {
    hit_ = true;
    return text.substr(0, start);
  }
  size_t keep = 0;
  for (const std::string& stop : stops_) {
    for (size_t n = std::min(stop.size() - 1, text.size()); n > keep; --n) {
      if (text.compare(text.size() - n, n, stop, 0, n) == 0) keep = n;
    }
  }
  // Bytes of half a character are no text of their own: a stop string is whole characters, and so is what it may start with.
  while (keep > 0 && (text[text.size() - keep] & 0xC0) == 0x80) --keep;
  held_ = text.substr(text.size() - keep);
  text.resize(text.size() - keep);
  return text;
}

}  // namespace phi3mobile
