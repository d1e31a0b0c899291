// The part of a conversation that fits the context, as phi3mobile/session/conversation.py.
#pragma once

#include "base/json.h"

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace phi3mobile {

// The system message and the newest turns, whole.
class Window {
 public:
  using Encode = std::function<std::vector<int64_t>(const Json::Array&)>;
  using Common = std::function<int64_t(const std::vector<int64_t>&)>;  // length of the prefix that the KV cache holds

  Window(Json::Array messages, Encode encode, int64_t max_context, Common common);

  // Ids of the most messages that fit with the answer so far and one more token; none: the last turn does not. A window that
  // leaves some room is preferred, or the next token slides it again; but the one in the KV cache costs nothing, however full.
  std::optional<std::vector<int64_t>> tokens(const std::vector<int64_t>& answer);
  // Ids of the system message and the last turn.
  std::vector<int64_t> smallest() const;

  int64_t dropped = 0;  // messages left out so far

 private:
  Json::Array from(size_t start) const;

  Json::Array messages_;
  Encode encode_;
  int64_t max_context_;
  Common common_;
  std::vector<size_t> starts_;  // where turns start: the first message that is not the system's, then every user message
};

}  // namespace phi3mobile
