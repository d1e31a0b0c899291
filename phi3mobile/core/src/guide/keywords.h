// What the keywords of a JSON schema may say, each by itself.
#pragma once

#include "base/json.h"

#include <string>

namespace phi3mobile {

bool is_plain(const std::string& key);  // it says something of a value itself
bool is_count(const std::string& key);

// InputError: a keyword or $schema that can't be followed.
void check_keywords(const Json& node, const std::string& path);
// InputError: a constant that llguidance can't spell.
void check_value(const Json& value, const std::string& path);

// Schemas that together allow these values: of one value each, those without parts in one enum.
Json::Array constants(const Json& some, const std::string& path);
Json types_of(const Json& value, const std::string& path);
Json names_of(const Json& value, const std::string& path);  // of `required`
Json count_of(const std::string& key, const Json& value, const std::string& path);
std::string checked_pattern(const Json& value, const std::string& path);
// minimum, maximum, exclusiveMinimum, exclusiveMaximum (draft 4's true too) and multipleOf, exact in float64.
void add_bounds(const Json& node, const std::string& path, Json& out);

// The last part of a path: a keyword.
std::string last_of(const std::string& path);

}  // namespace phi3mobile
