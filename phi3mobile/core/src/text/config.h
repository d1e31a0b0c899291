// Members of a tokenizer's files, which must be what they are taken for.
#pragma once

#include "base/json.h"

#include <stdexcept>
#include <string>
#include <string_view>

namespace phi3mobile {

// The file is not what its name says: whoever opened it adds the name and what to do.
class Damaged : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

inline const std::string& text_in(const Json& object, std::string_view name) {
  if (!object[name].is_string()) throw Damaged("a text \"" + std::string(name) + "\" is missing");
  return object[name].string();
}

inline int64_t integer_in(const Json& object, std::string_view name) {
  if (!object[name].is_integer()) throw Damaged("a number \"" + std::string(name) + "\" is missing");
  return object[name].integer();
}

inline bool flag_in(const Json& object, std::string_view name, bool otherwise = false) {
  const Json& value = object[name];
  if (!value.is_null() && !value.is_bool()) throw Damaged("\"" + std::string(name) + "\" is neither true nor false");
  return value.is_bool() ? value.boolean() : otherwise;
}

inline const Json::Array& list_in(const Json& object, std::string_view name) {
  if (!object[name].is_array()) throw Damaged("a list \"" + std::string(name) + "\" is missing");
  return object[name].array();
}

}  // namespace phi3mobile
