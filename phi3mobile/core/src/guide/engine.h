// What is asked of llguidance about a schema before it answers.
#pragma once

#include "base/json.h"

#include <string>

namespace phi3mobile {

// llguidance's grammar of a schema, an object that `read_schema` gave.
Json grammar_of(const Json& schema);
// Its options, a schema's "x-guidance": between JSON's tokens nothing, a space, or a new line with its indentation; unbounded,
// it could fill an answer. Without `u` after a backslash no answer has control characters that have no letter of their own.
// With it llguidance lets a further key be spelled "\u0061", which is the declared "a" with a value that is not a's.
Json guidance_options();

// What llguidance has against a schema; "" if it takes it.
std::string refusal(const Json& schema);
// Whether llguidance finds `pattern` in `name`.
bool matches(const std::string& pattern, const std::string& name);
// Whether llguidance takes `schema` and yet knows no byte that may follow `after`, the beginning of an answer.
bool stuck(const Json& schema, const std::string& after = "");

}  // namespace phi3mobile
