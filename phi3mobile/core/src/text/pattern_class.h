// The characters that a part of a pattern stands for: one, what a backslash names, a class in brackets; inside (?i:) with the
// other case.
#pragma once

#include "text/pattern_text.h"
#include "text/unicode.h"

namespace phi3mobile {

Ranges others(const Ranges& ranges);  // all characters but these

Ranges read_character(PatternText& in);  // that stands for itself
Ranges read_escape(PatternText& in);     // a backslash is already taken
Ranges read_class(PatternText& in);      // [ is already taken

}  // namespace phi3mobile
