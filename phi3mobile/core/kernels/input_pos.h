// What a program's input_pos carries above its position (phi3mobile/engines/base.py).
#pragma once

#include <cstdint>

namespace phi3mobile {

constexpr int64_t kLongRegime = int64_t(1) << 30;  // the long RoPE factors apply even if this forward ends before the switch
constexpr int64_t kLastRow = int64_t(1) << 31;     // of the logits only the last row

}  // namespace phi3mobile
