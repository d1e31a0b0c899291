// The arguments of p3m's verbs, and what all of them share.
#pragma once

#include "base/error.h"
#include "base/json.h"
#include "phi3mobile_session.h"
#include "phi3mobile_text.h"

#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

namespace phi3mobile {

struct Arguments {
  std::vector<std::string> plain, images;
  Json request{Json::Object()}, options{Json::Object()};
  std::string system, features;
  bool raw = false, statistics = false;
};

// std::invalid_argument: an unknown option, a value that is none, too few or too many plain arguments.
Arguments parsed(int count, char** given, size_t least, size_t most);

// False: stdin ended.
bool read_line(std::string* line);

struct Close {
  void operator()(p3m_session* session) const { p3m_session_close(session); }
  void operator()(p3m_bundle* bundle) const { p3m_bundle_close(bundle); }
  void operator()(p3m_tokenizer* tokenizer) const { p3m_tokenizer_close(tokenizer); }
};

// One verb: what was given wrong is told in a line and gives 2, what failed 1.
template <class Work>
int told(Work work) {
  try {
    return work();
  } catch (const std::invalid_argument& wrong) {
    return std::fprintf(stderr, "p3m: %s\n", wrong.what()), 2;
  } catch (const phi3mobile::InputError& wrong) {
    return std::fprintf(stderr, "p3m: %s\n", wrong.what()), 2;
  } catch (const std::exception& failed) {
    return std::fprintf(stderr, "p3m: %s\n", failed.what()), 1;
  }
}

}  // namespace phi3mobile
