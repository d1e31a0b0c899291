// A call's attention, shared among the threads.
#pragma once

#include "attention.h"

namespace phi3mobile {

// Consecutive blocks that are in an evicting cache at once, wherever they start.
inline int64_t reach_of(const Attention& a) {
  const int64_t passing = a.stride - a.kept;
  return a.ring / passing * a.stride + a.ring % passing;
}

// Writes the new rows and attends. A cache with a ring takes as many tokens at once as it holds beside their local window.
// False: no memory.
bool attend_tokens(Attention a);

}  // namespace phi3mobile
