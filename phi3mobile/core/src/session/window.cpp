#include "session/window.h"

namespace phi3mobile {

namespace {
constexpr int64_t kFreeShare = 8;  // a slid window leaves 1/8 of the context free
}

Window::Window(Json::Array messages, Encode encode, int64_t max_context, Common common)
    : messages_(std::move(messages)), encode_(std::move(encode)), max_context_(max_context), common_(std::move(common)) {
  const size_t first = messages_.front()["role"].string() == "system";
  starts_.push_back(first);
  for (size_t i = first + 1; i < messages_.size(); ++i) {
    if (messages_[i]["role"].string() == "user") starts_.push_back(i);
  }
}

std::optional<std::vector<int64_t>> Window::tokens(const std::vector<int64_t>& answer) {
  for (const size_t start : starts_) {
    std::vector<int64_t> tokens = encode_(from(start));
    tokens.insert(tokens.end(), answer.begin(), answer.end());
    const int64_t length = int64_t(tokens.size()), room = max_context_ - length;
    const bool roomy = room >= max_context_ / kFreeShare || common_(tokens) > length / 2;
    if (room >= 1 && (roomy || start == starts_.front() || start == starts_.back())) {
      dropped = std::max(dropped, int64_t(start - starts_.front()));
      return tokens;
    }
  }
  return std::nullopt;
}

std::vector<int64_t> Window::smallest() const { return encode_(from(starts_.back())); }

Json::Array Window::from(size_t start) const {
  Json::Array kept(messages_.begin(), messages_.begin() + std::ptrdiff_t(starts_.front()));
  kept.insert(kept.end(), messages_.begin() + std::ptrdiff_t(start), messages_.end());
  return kept;
}

}  // namespace phi3mobile
