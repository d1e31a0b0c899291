// JSON schemas as llguidance can follow them to the end, as phi3mobile/session/schema; what it lacks or gets wrong is refused
// before the first token. document.cpp reads a schema: keywords, values, references; closed.cpp keeps invented keys out.
// places.cpp walks the places of an answer and looks for those that llguidance takes and can't fill. pattern.cpp brings regular
// expressions from JSON Schema's dialect to Rust's.
#pragma once

#include "base/json.h"

namespace phi3mobile {

// The schema (an object or its JSON text) for llguidance: the same answers, or a few less. additional: false adds
// "additionalProperties": false where a schema declares names and is silent on others. InputError: no JSON, no object, a
// keyword or value that can't be followed, a place that nothing can fill.
Json followed(const Json& schema, bool additional = false);

}  // namespace phi3mobile
