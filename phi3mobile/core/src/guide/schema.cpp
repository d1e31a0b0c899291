#include "guide/schema.h"

#include "base/error.h"
#include "guide/document.h"
#include "guide/engine.h"
#include "guide/places.h"

#include <string>

namespace phi3mobile {

namespace {

// Of equal names the last one, in the place of the first.
Json unique(const Json& value) {
  if (value.is_array()) {
    Json::Array items;
    for (const Json& item : value.array()) items.push_back(unique(item));
    return items;
  }
  if (!value.is_object()) return value;
  Json made{Json::Object()};
  for (const auto& [name, member] : value.object()) made.set(name, unique(member));
  return made;
}

std::string python_type(const Json& value) {
  if (value.is_null()) return "NoneType";
  if (value.is_bool()) return "bool";
  if (value.is_integer()) return "int";
  if (value.is_number()) return "float";
  return value.is_string() ? "str" : "list";
}

Json read(const std::string& text) {
  try {
    return Json::parse(text, "the JSON schema");
  } catch (const InputError& wrong) {
    throw InputError(std::string(wrong.what()) + "; correct it");
  }
}

}  // namespace

Json followed(const Json& schema, bool additional) {
  const Json document = unique(schema.is_string() ? read(schema.string()) : schema);
  if (!document.is_object()) {
    throw InputError("the JSON schema is a " + python_type(document) + R"(; it must be an object such as {"type": "object"})");
  }
  Schemas schemas;
  read_schema(document, additional, schemas);
  if (schemas.root.is_bool()) {
    if (!schemas.root.boolean()) throw wrong_schema("nothing satisfies it");
    schemas.root = Json(Json::Object());
  }
  Json made = schemas.whole();
  if (const std::string reason = refusal(made); !reason.empty()) throw wrong_schema(reason);
  check_places(schemas);
  return made;
}

}  // namespace phi3mobile
