// Regular expressions of JSON Schema (ECMA 262's) in the syntax and within the limits of llguidance (Rust's).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace phi3mobile {

// Characters or items that an answer can be made to have at least: llguidance follows them for seconds.
constexpr int64_t kLongest = 1 << 13;

// The same pattern as llguidance needs it.
std::string translated(std::string_view pattern);
// Characters that a match has at least; of alternatives the sum.
int64_t least(std::string_view pattern);
// Whether an answer can have `text` in a string: it has no control characters without a letter.
bool spelled(std::string_view text);

}  // namespace phi3mobile
