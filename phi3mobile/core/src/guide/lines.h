// Parts of texts in messages, as Python's format and split cut them.
#pragma once

#include <string>
#include <string_view>

namespace phi3mobile {

// The first so many characters.
std::string cut(std::string_view text, size_t characters);
// Words apart by one space, none around.
std::string one_line(std::string_view text);

}  // namespace phi3mobile
