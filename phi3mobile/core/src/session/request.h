// What a request of p3m_session_start says, read and checked: InputError for what is wrong with it.
#pragma once

#include "base/json.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace phi3mobile {

// That it is an object, has only known keys, and messages or a prompt.
void check_keys(const Json& request);
bool flag(const Json& request, const char* name);
// None: no limit.
std::optional<int64_t> max_tokens(const Json& request);
std::vector<std::string> stops(const Json& request);
// Whether the oldest turns are dropped when the context is full.
bool slides(const Json& request);
// What the answer may be, as llguidance's grammar; null: anything.
Json grammar_asked(const Json& request);

}  // namespace phi3mobile
