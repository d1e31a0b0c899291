#include "guide/keywords.h"

#include "guide/document.h"
#include "guide/lines.h"
#include "guide/pattern.h"
#include "text/repr.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>
#include <utility>

namespace phi3mobile {

namespace {

constexpr std::array<const char*, 7> kTypes{"null", "boolean", "integer", "number", "string", "array", "object"};
constexpr std::array<const char*, 5> kDrafts{
    "2020-12/schema", "2019-09/schema", "draft-07/schema", "draft-06/schema", "draft-04/schema"};
// Assertions that llguidance has not; some it ignores, by $schema.
constexpr std::array<const char*, 13> kLacks{"not", "if", "then", "else", "contains", "$dynamicRef", "$recursiveRef",
    "divisibleBy", "disallow", "extends", "x-guidance", "minContains", "maxContains"};
constexpr std::array<const char*, 3> kDependent{"dependentRequired", "dependentSchemas", "dependencies"};
constexpr std::array<const char*, 3> kUnevaluated{"unevaluatedProperties", "unevaluatedItems", "propertyNames"};
constexpr std::array<const char*, 6> kCounts{
    "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"};
constexpr std::array<const char*, 16> kPlain{"type", "properties", "patternProperties", "additionalProperties", "required",
    "items", "prefixItems", "additionalItems", "pattern", "format", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "multipleOf", ""};
constexpr int64_t kExact = int64_t(1) << 53;  // llguidance counts in float64
constexpr int64_t kLarge = 1 << 16;           // what "at most" is lowered to

template <class List>
bool among(const List& list, std::string_view name) {
  return std::find(list.begin(), list.end(), name) != list.end();
}

// Whether a keyword that llguidance lacks changes nothing so.
bool idle(const std::string& key, const Json& value) {
  const bool nothing = value.is_object() && value.object().empty();
  if (among(kLacks, key)) return false;
  if (among(kDependent, key)) return nothing;
  if (among(kUnevaluated, key)) return nothing || (value.is_bool() && value.boolean());
  return key != "uniqueItems" || (value.is_bool() && !value.boolean());
}

// -1, 0, 1: a number below, at or above a whole one.
int compared(const Json& value, int64_t limit) {
  if (value.is_integer()) return value.integer() < limit ? -1 : value.integer() > limit;
  return value.number() < double(limit) ? -1 : value.number() > double(limit);
}

bool is_exact(const Json& value) { return compared(value, kExact) <= 0 && compared(value, -kExact) >= 0; }

// As Python prints a number.
std::string shown(const Json& value) { return repr(value); }

const Json& number_of(const Json& value, const std::string& path) {
  if (!value.is_number()) throw wrong_schema(last_of(path) + " is " + cut(repr(value), 40) + "; it must be a number", path);
  return value;
}

}  // namespace

bool is_plain(const std::string& key) { return !key.empty() && (among(kPlain, key) || is_count(key)); }
bool is_count(const std::string& key) { return among(kCounts, key); }
std::string last_of(const std::string& path) { return path.substr(path.rfind('/') + 1); }

void check_keywords(const Json& node, const std::string& path) {
  for (const auto& [key, value] : node.object()) {
    if (!idle(key, value)) throw wrong_schema(key + " is not supported", path);
  }
  const Json& draft = node["$schema"];
  if (draft.is_null()) return;
  bool known = false;
  if (draft.is_string()) {
    std::string_view text = draft.string();
    while (!text.empty() && text.back() == '#') text.remove_suffix(1);
    known = std::any_of(kDrafts.begin(), kDrafts.end(),
        [&](std::string_view end) { return text.size() >= end.size() && text.substr(text.size() - end.size()) == end; });
  }
  if (!known) throw wrong_schema("$schema " + cut(repr(draft), 80) + " is not known; draft-04 to 2020-12 are", path);
}

void check_value(const Json& value, const std::string& path) {
  if (value.is_string() && !spelled(value.string())) {
    throw wrong_schema(cut(repr(value), 40) + " has control characters or is not Unicode", path);
  }
  if (value.is_number() && !is_exact(value)) {
    throw wrong_schema(shown(value) + " is beyond 2^53, which is counted exactly", path);
  }
  if (value.is_array()) {
    for (const Json& one : value.array()) check_value(one, path);
  }
  if (value.is_object()) {
    for (const auto& member : value.object()) check_value(Json(member.first), path);
    for (const auto& member : value.object()) check_value(member.second, path);
  }
}

Json::Array constants(const Json& some, const std::string& path) {
  if (!some.is_array() || some.array().empty()) throw wrong_schema("enum is a list of values", path);
  const auto of_one = [&](const Json& value) { return std::move(constants(Json(Json::Array{value}), path)[0]); };
  Json::Array whole, found;
  for (const Json& one : some.array()) {
    if (!one.is_array() && !one.is_object()) whole.push_back(one);
  }
  if (!whole.empty()) {
    Json listed{Json::Object()};
    listed.set("enum", std::move(whole));
    found.push_back(std::move(listed));
  }
  for (const Json& one : some.array()) {
    Json made{Json::Object()};
    if (one.is_array()) {
      const int64_t size = int64_t(one.array().size());
      Json::Array parts;
      for (const Json& part : one.array()) parts.push_back(of_one(part));
      made.set("type", Json::Array{"array"});
      if (size) made.set("prefixItems", std::move(parts));
      made.set("items", false);
      made.set("minItems", size);
      made.set("maxItems", size);
    } else if (one.is_object()) {
      Json named{Json::Object()};
      Json::Array names;
      for (const auto& [name, part] : one.object()) {
        named.set(name, of_one(part));
        names.emplace_back(name);
      }
      made.set("type", Json::Array{"object"});
      made.set("properties", std::move(named));
      made.set("required", std::move(names));
      made.set("additionalProperties", false);
    } else {
      continue;
    }
    found.push_back(std::move(made));
  }
  return found;
}

Json types_of(const Json& value, const std::string& path) {
  const Json::Array given = value.is_array() ? value.array() : Json::Array{value};
  Json::Array found;
  bool ok = !given.empty();
  for (const Json& name : given) {
    ok = ok && name.is_string() && among(kTypes, name.string());
    if (!ok) break;
    const bool twice = std::any_of(found.begin(), found.end(), [&](const Json& one) { return one.string() == name.string(); });
    if (!twice) found.push_back(name);
  }
  if (ok) return found;
  std::string allowed;
  for (const char* name : kTypes) allowed += (allowed.empty() ? "" : ", ") + std::string(name);
  throw wrong_schema("type is " + cut(repr(value), 60) + "; it must be one of " + allowed + " or a list of them", path);
}

Json names_of(const Json& value, const std::string& path) {
  bool ok = value.is_array();
  if (ok) {
    for (const Json& name : value.array()) ok &= name.is_string();
  }
  if (!ok) throw wrong_schema("required is a list of names", path);
  check_value(value, path);
  Json::Array found;
  for (const Json& name : value.array()) {
    const bool twice = std::any_of(found.begin(), found.end(), [&](const Json& one) { return one.string() == name.string(); });
    if (!twice) found.push_back(name);
  }
  return found;
}

Json count_of(const std::string& key, const Json& value, const std::string& path) {
  if (!value.is_number() || value.number() < 0 || value.number() != std::floor(value.number())) {
    throw wrong_schema(key + " is " + cut(repr(value), 40) + "; it must be a whole number from 0 on", path);
  }
  if (key[1] == 'i' && compared(value, kLongest) > 0) {
    throw wrong_schema(key + " is " + shown(value) + "; " + std::to_string(kLongest) + " can be asked for", path);
  }
  return compared(value, kLarge) > 0 ? kLarge : int64_t(value.number());
}

std::string checked_pattern(const Json& value, const std::string& path) {
  if (!value.is_string()) throw wrong_schema("a pattern is a text", path);
  if (const int64_t count = least(value.string()); count > kLongest) {
    throw wrong_schema("the pattern " + cut(value.string(), 60) + " asks for " + std::to_string(count) + " characters; " +
                           std::to_string(kLongest) + " can be asked for",
        path);
  }
  return translated(value.string());
}

void add_bounds(const Json& node, const std::string& path, Json& out) {
  for (const int sign : {-1, 1}) {
    const std::string inclusive = sign < 0 ? "minimum" : "maximum",
                      exclusive = sign < 0 ? "exclusiveMinimum" : "exclusiveMaximum";
    Json low, high;  // of the inclusive and the exclusive bound; null: none
    for (const bool open : {false, true}) {
      const std::string& key = open ? exclusive : inclusive;
      const Json& given = node[key];
      if (given.is_null() || (given.is_bool() && !given.boolean())) continue;
      if (open && given.is_bool()) {
        if (!low.is_null()) high = std::exchange(low, Json());
        continue;
      }
      const Json& value = number_of(given, path + "/" + key);
      if (compared(value, sign * -kExact) == -sign) {
        throw wrong_schema(key + " is " + shown(value) + ", beyond 2^53, which is counted exactly", path);
      }
      if (compared(value, sign * kExact) == sign) {  // a bound that is nearer leaves valid answers only
        if (low.is_null()) low = sign * kExact;
      } else {
        (open ? high : low) = value;
      }
    }
    if (!low.is_null()) out.set(inclusive, std::move(low));
    if (!high.is_null()) out.set(exclusive, std::move(high));
  }
  if (!node.has("multipleOf")) return;
  const Json& step = number_of(node["multipleOf"], path + "/multipleOf");
  if (compared(step, 0) <= 0 || compared(step, kExact) > 0)
    throw wrong_schema("multipleOf must be above 0 and at most 2^53", path);
  out.set("multipleOf", step);
}

}  // namespace phi3mobile
