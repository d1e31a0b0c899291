#include "runtime_log.h"

#include <algorithm>
#include <cstdio>

#include <executorch/runtime/platform/platform.h>

namespace phi3mobile {
namespace {

thread_local Log* listening = nullptr;

// Messages outside our calls go to stderr, errors only.
void hear(et_timestamp_t, et_pal_log_level_t level, const char*, const char*, size_t, const char* message, size_t length) {
  const bool error = level == kError || level == kFatal;
  if (listening) {
    auto& to = error ? listening->errors : listening->notes;
    if (to.size() < 64) to.emplace_back(message, length);
  } else if (error) {
    std::fprintf(stderr, "executorch: %.*s\n", int(length), message);
  }
}

}  // namespace

std::string first_of(const std::vector<std::string>& messages) {
  std::string text;
  for (size_t i = 0; i < messages.size() && i < 3; ++i) {
    if (messages[i].rfind("arg ", 0) == 0) break;
    if (i == 0 || messages[i] != messages[i - 1]) text += (text.empty() ? "" : "; ") + messages[i];
  }
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

Listen::Listen(Log& log) : before_(listening) {
  // One logger a process: ExecuTorch's Python bindings put in theirs when they are imported, also after us.
  if (executorch::runtime::get_pal_impl()->emit_log_message != hear) {
    executorch::runtime::register_pal(executorch::runtime::PalImpl::create(hear, __FILE__));
  }
  log = Log{};
  listening = &log;
}

Listen::~Listen() { listening = before_; }

}  // namespace phi3mobile
