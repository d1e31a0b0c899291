// One answer in numbers, named as phi3mobile/session/statistics.py names them.
#pragma once

#include "base/json.h"
#include "session/answer.h"

namespace phi3mobile {

// Of an answer that ended. dropped: messages that the sliding window left out.
Json statistics_of(const Answer& answer, int64_t dropped);

}  // namespace phi3mobile
