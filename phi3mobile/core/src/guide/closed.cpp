#include "guide/closed.h"

#include <algorithm>
#include <array>
#include <set>

namespace phi3mobile {

namespace {

constexpr std::array<const char*, 4> kApplied{"allOf", "anyOf", "oneOf", "$ref"};
constexpr std::array<const char*, 8> kNotes{
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "definitions"};

template <class List>
bool among(const List& list, const std::string& name) {
  return std::find(list.begin(), list.end(), name) != list.end();
}

void add(std::vector<std::string>& names, const std::string& name) {
  if (!among(names, name)) names.push_back(name);
}

}  // namespace

bool hands_on(const Json& node) {
  std::string said;
  for (const auto& [key, value] : node.object()) {
    if (among(kNotes, key) || (key[0] == '$' && key != "$ref")) continue;
    if (!said.empty()) return false;
    said = key;
  }
  const Json& all = node["allOf"];
  return !said.empty() && among(kApplied, said) && (said != "allOf" || (all.is_array() && all.array().size() == 1));
}

Closing closing(const Json& node, const Addresses& addresses) {
  Closing found;
  int64_t least = 0;
  std::set<const Json*> seen;
  std::vector<const Json*> waiting{&node};
  while (!waiting.empty()) {
    const Json& part = *waiting.back();
    waiting.pop_back();
    if (!part.is_object() || !seen.insert(&part).second) continue;
    if (part.has("additionalProperties") || part.has("unevaluatedProperties")) return {};
    if (const Json& declared = part["properties"]; declared.is_object()) {
      for (const auto& member : declared.object()) add(found.names, member.first);
    }
    if (const Json& some = part["patternProperties"]; some.is_object()) {
      for (const auto& member : some.object()) add(found.patterns, member.first);
    }
    if (const Json& asked = part["required"]; asked.is_array()) {
      for (const Json& name : asked.array()) {
        if (name.is_string()) add(found.names, name.string());
      }
    }
    if (const Json& count = part["minProperties"]; count.is_integer()) least = std::max(least, count.integer());
    for (const char* key : {"allOf", "anyOf", "oneOf"}) {
      if (!part[key].is_array()) continue;
      for (const Json& one : part[key].array()) waiting.push_back(&one);
    }
    if (const Json& reference = part["$ref"]; reference.is_string()) {
      std::string why;
      const Json* target = addresses.find(reference.string(), part, &why);
      if (!target) return {};  // reading it says what is wrong
      waiting.push_back(target);
    }
  }
  if (found.names.empty() && found.patterns.empty()) return {};
  if (least > int64_t(found.names.size()) && found.patterns.empty()) return {};
  found.closes = true;
  const auto without = [](std::vector<std::string>& names, const Json& own) {
    names.erase(
        std::remove_if(names.begin(), names.end(), [&](const std::string& name) { return own.has(name); }), names.end());
  };
  without(found.names, node["properties"]);
  without(found.patterns, node["patternProperties"]);
  return found;
}

}  // namespace phi3mobile
