// What Unicode says about characters, in Python 3.11's version of it (tests/core/text/unicode_tables.py).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace phi3mobile {

using Ranges = std::vector<std::pair<uint32_t, uint32_t>>;  // first and last codes, in order, apart

// White_Space: what a pattern's \s is, and what added tokens swallow.
bool is_space(uint32_t code);

// A letter or number of any kind, as Python's str.isalnum.
bool is_alphanumeric(uint32_t code);

// Whether Python's repr shows it as it is.
bool is_printable(uint32_t code);

// The characters of a general category by name or beginning of it (Lu, L, ...); empty: there is none.
Ranges category(std::string_view name);
const Ranges& spaces();

enum class Form { NFC, NFD, NFKC, NFKD };
std::string normalized(std::string_view text, Form form);

// Lower case, as Python's str.lower.
std::string lowered(std::string_view text);

// Without the White_Space at its beginning or end.
std::string_view without_leading_space(std::string_view text);
std::string_view without_trailing_space(std::string_view text);

// As Python's str.strip: White_Space and U+001C to U+001F.
std::string_view stripped(std::string_view text);

// The character that ends at `end`, which moves before it. The text is well-formed.
uint32_t previous_character(std::string_view text, size_t& end);

}  // namespace phi3mobile
