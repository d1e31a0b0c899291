// A JSON schema, read: each keyword and value checked, the drafts' spellings made one, references resolved.
#pragma once

#include "base/error.h"
#include "base/json.h"

#include <deque>
#include <string>
#include <unordered_set>

namespace phi3mobile {

// A schema as llguidance takes it. A $ref is "#/$defs/" and the number of a definition. Nothing in it moves.
struct Schemas {
  Json root;
  std::deque<Json> definitions;
  std::unordered_set<const Json*> exclusive;  // first choices of the anyOf lists that were oneOf

  Json whole() const;  // one object with its definitions
};

// additional: whether objects that declare names and are silent on others have others (see closed.h). InputError.
void read_schema(const Json& document, bool additional, Schemas& to);

// The reason why a schema can't be used.
InputError wrong_schema(const std::string& reason, const std::string& path = "");

}  // namespace phi3mobile
