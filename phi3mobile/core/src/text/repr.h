// Values in messages as the Python package writes them (repr).
#pragma once

#include "base/json.h"

#include <string>
#include <string_view>

namespace phi3mobile {

std::string repr(std::string_view text);
std::string repr(const Json& value);
inline std::string repr(const std::string& text) { return repr(std::string_view(text)); }

}  // namespace phi3mobile
