// How many models are open: the pool can't be exchanged below them.
#pragma once

#include <atomic>

namespace phi3mobile { extern std::atomic<int> open_models; }  // namespace phi3mobile
