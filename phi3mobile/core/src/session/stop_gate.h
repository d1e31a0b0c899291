// Lets text through up to the first stop string, holding back what may still become one, as phi3mobile/session/session.py.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace phi3mobile {

class StopGate {
 public:
  explicit StopGate(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  // The text that may be shown now; empty once a stop string was seen. The one that is complete first ends the text (the
  // longest, if several end there): however the text is cut.
  std::string push(std::string_view more);
  // What was held back, now that nothing follows.
  std::string finish() { return std::exchange(held_, {}); }
  bool hit() const { return hit_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool hit_ = false;
};

}  // namespace phi3mobile
