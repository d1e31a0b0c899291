#include "base/json.h"

namespace phi3mobile {

namespace { const Json kNull; }  // namespace

const Json* Json::find(std::string_view name) const {
  if (!is_object()) return nullptr;
  const Object& members = object();
  for (auto member = members.rbegin(); member != members.rend(); ++member) {
    if (member->first == name) return &member->second;
  }
  return nullptr;
}

const Json& Json::operator[](std::string_view name) const {
  const Json* found = find(name);
  return found ? *found : kNull;
}

bool Json::has(std::string_view name) const { return find(name) != nullptr; }

void Json::set(std::string_view name, Json value) {
  if (!is_object()) value_ = Object();
  if (const Json* found = find(name)) {
    *const_cast<Json*>(found) = std::move(value);
  } else {
    std::get<Object>(value_).emplace_back(name, std::move(value));
  }
}

Json Json::take(std::string_view name) {
  const Json* found = find(name);
  return found ? std::exchange(*const_cast<Json*>(found), Json()) : Json();
}

}  // namespace phi3mobile
