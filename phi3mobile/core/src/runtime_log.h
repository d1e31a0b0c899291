// The runtime tells what went wrong, and what became of the packed weights, only in its log.
#pragma once

#include <string>
#include <vector>

namespace phi3mobile {

struct Log {
  std::vector<std::string> errors, notes;
};

// The first few different messages, without the dump of arguments that follows a failed operator.
std::string first_of(const std::vector<std::string>& messages);

// While it lives, `log` gets what the runtime says on this thread.
class Listen {
 public:
  explicit Listen(Log& log);
  ~Listen();
  Listen(const Listen&) = delete;
  Listen& operator=(const Listen&) = delete;

 private:
  Log* before_;
};

}  // namespace phi3mobile
