#include "guide/document.h"

#include "guide/addresses.h"
#include "guide/closed.h"
#include "guide/keywords.h"
#include "guide/lines.h"
#include "guide/pattern.h"
#include "text/repr.h"

#include <map>
#include <type_traits>
#include <utility>

namespace phi3mobile {

namespace {

static_assert(std::is_nothrow_move_constructible_v<Json>, "the lists in `exclusive` are known by where they lie");
constexpr int kLevels = 400;  // schemas within schemas, through references: llguidance's recursion has no limit but the stack

bool falsy(const Json& value) {
  if (value.is_bool()) return !value.boolean();
  if (value.is_number()) return value.number() == 0;
  if (value.is_string()) return value.string().empty();
  return value.is_null() || (value.is_array() && value.array().empty()) || (value.is_object() && value.object().empty());
}

class Reader {
 public:
  Reader(const Json& document, bool additional, Schemas& to)
      : document_(document), close_(!additional), addresses_(document), to_(to) {}

  void read() {
    to_.root = place(document_, "", 1);
    while (!waiting_.empty()) {
      const Waiting next = std::move(waiting_.front());
      waiting_.pop_front();
      here_ = to_.definitions.size() + 1;
      to_.definitions.push_back(schema(*next.node, next.path, 1, next.closed));
    }
    if (const int levels = deepest(edges_); levels > kLevels) {
      throw wrong_schema(
          "its references go " + std::to_string(levels) + " levels deep; " + std::to_string(kLevels) + " can be followed");
    }
  }

 private:
  struct Waiting {
    const Json* node;
    std::string path;
    bool closed;
  };

  // The schema of a value, which no other schema describes.
  Json place(const Json& node, const std::string& path, int level) { return schema(node, path, level, close_); }

  // The schema with keywords of 2020-12 that llguidance has, in an order that it reads right.
  Json schema(const Json& node, const std::string& path, int level, bool closed) {
    if (node.is_bool()) return node;
    if (!node.is_object()) throw wrong_schema("a schema is an object, true or false, not " + cut(repr(node), 40), path);
    check_keywords(node, path);
    Json::Object plain = plain_of(node, path, level);
    std::string pivot = node.has("properties") ? "properties" : "";
    for (const auto& member : node.object()) {
      if (pivot.empty() && is_plain(member.first)) pivot = member.first;
    }
    const bool applied = closed && hands_on(node);  // what it applies is closed, and not it
    Json out{Json::Object()};
    const auto add_plain = [&] {
      for (auto& [key, value] : plain) out.set(key, std::move(value));
      plain.clear();
    };
    if (closed && !applied && close(node, path, plain) && pivot.empty()) add_plain();
    for (const auto& [key, value] : node.object()) {
      const std::string here = path + "/" + key;
      if (key == pivot) {  // together: llguidance takes what stands before and after allOf, anyOf, ... for two schemas
        add_plain();
      } else if (key == "allOf") {
        for (Json& one : list(value, here, level, applied)) all_of(out, std::move(one));
      } else if (key == "anyOf" || key == "oneOf") {
        Json::Array branches = list(value, here, level, applied);
        if (key == "oneOf" && branches.size() > 1) to_.exclusive.insert(branches.data());
        choose(out, std::move(branches));
      } else if (key == "$ref") {
        Json target = target_of(value, node, here, level, applied);
        if (target.is_bool() && !target.boolean()) return target;
        if (!target.is_bool()) out.set("$ref", std::move(target));
      } else if (key == "const" || key == "enum") {
        check_value(value, here);
        choose(out, constants(key == "const" ? Json(Json::Array{value}) : value, here));
      }
    }
    return out;
  }

  // Adds to the plain part what closes the object; whether anything did.
  bool close(const Json& node, const std::string& path, Json::Object& plain) {
    const Closing more = closing(node, addresses_);
    if (!more.closes) return false;
    Json made(std::move(plain));
    made.set("additionalProperties", false);
    const auto allow = [&](const char* key, const std::string& name) {
      Json names = made.take(key);
      names.set(name, true);
      made.set(key, std::move(names));
    };
    for (const std::string& name : more.names) allow("properties", name);
    for (const std::string& name : more.patterns) allow("patternProperties", checked_pattern(name, path));
    plain = std::move(made.object());
    return true;
  }

  Json::Array list(const Json& value, const std::string& path, int level, bool closed) {
    if (!value.is_array() || value.array().empty()) throw wrong_schema(last_of(path) + " is a list of schemas", path);
    Json::Array found;
    found.reserve(value.array().size());
    for (const Json& one : value.array()) {
      found.push_back(schema(one, path + "/" + std::to_string(found.size()), level + 1, closed));
    }
    return found;
  }

  Json map(const Json& value, const std::string& path, int level) {
    if (!value.is_object()) throw wrong_schema(last_of(path) + " is an object of schemas", path);
    Json::Object found;
    for (const auto& [name, one] : value.object()) found.emplace_back(name, place(one, path + "/" + name, level + 1));
    return found;
  }

  // What is said of a value itself, without references or choices.
  Json::Object plain_of(const Json& node, const std::string& path, int level) {
    Json out{Json::Object()};
    const bool tuple = node["items"].is_array();
    for (const auto& [key, value] : node.object()) {
      const std::string here = path + "/" + key;
      if (key == "type") {
        out.set(key, types_of(value, here));
      } else if (key == "properties") {
        out.set(key, map(value, here, level));
        for (const auto& member : value.object()) check_value(Json(member.first), here);
      } else if (key == "patternProperties") {
        Json found = map(value, here, level), made{Json::Object()};
        for (auto& [name, one] : found.object()) made.set(checked_pattern(name, here), std::move(one));
        out.set(key, std::move(made));
      } else if (key == "prefixItems" || (key == "items" && tuple)) {
        out.set("prefixItems", falsy(value) ? Json(Json::Array()) : Json(list(value, here, level, close_)));
      } else if (key == "items" || key == "additionalProperties" || (key == "additionalItems" && tuple)) {
        out.set(key == "additionalItems" ? "items" : key, place(value, here, level + 1));
      } else if (key == "required") {
        out.set(key, names_of(value, here));
      } else if (is_count(key)) {
        out.set(key, count_of(key, value, here));
      } else if (key == "pattern") {
        out.set(key, checked_pattern(value, here));
      } else if (key == "format") {
        if (!value.is_string()) throw wrong_schema("format is a name", here);
        out.set(key, value);
      }
    }
    add_bounds(node, path, out);
    return std::move(out.object());
  }

  // What a $ref of the object `source` becomes.
  Json target_of(const Json& reference, const Json& source, const std::string& path, int level, bool closed) {
    if (!reference.is_string()) throw wrong_schema("$ref is a text", path);
    std::string why;
    const Json* node = addresses_.find(reference.string(), source, &why);
    if (!node) {
      throw wrong_schema(
          "$ref " + reference.string() + " leads to nothing in this schema" + why + "; write it under $defs", path);
    }
    if (node->is_bool()) return *node;
    const auto [name, is_new] = names_.emplace(std::make_pair(node, closed), names_.size());
    if (is_new) {
      edges_.emplace_back();
      waiting_.push_back({node, reference.string(), closed});
    }
    edges_[here_].emplace_back(name->second + 1, level);
    return "#/$defs/" + std::to_string(name->second);
  }

  static void all_of(Json& out, Json one) {
    Json all = out.has("allOf") ? out.take("allOf") : Json(Json::Array());
    all.array().push_back(std::move(one));
    out.set("allOf", std::move(all));
  }

  // Lets `out` ask for one of the branches, beside what it asks for.
  static void choose(Json& out, Json::Array branches) {
    if (branches.size() == 1) return all_of(out, std::move(branches[0]));
    if (!out.has("anyOf")) return out.set("anyOf", std::move(branches));
    Json more{Json::Object()};
    more.set("anyOf", std::move(branches));
    all_of(out, std::move(more));
  }

  const Json& document_;
  bool close_;
  Addresses addresses_;
  Schemas& to_;
  std::deque<Waiting> waiting_;
  size_t here_ = 0;  // the definition that is read, counted from 1; 0: the root
  Edges edges_{1};
  std::map<std::pair<const Json*, bool>, size_t> names_;
};

}  // namespace

Json Schemas::whole() const {
  Json made = root.is_bool() ? Json(Json::Object()) : root;
  if (definitions.empty()) return made;
  Json named{Json::Object()};
  for (const Json& one : definitions) named.set(std::to_string(named.object().size()), one);
  made.set("$defs", std::move(named));
  return made;
}

void read_schema(const Json& document, bool additional, Schemas& to) { Reader(document, additional, to).read(); }

InputError wrong_schema(const std::string& reason, const std::string& path) {
  const std::string said = one_line(cut(reason, 300) + (path.empty() ? "" : " (at " + cut(path, 100) + ")"));
  return InputError("the JSON schema can't be used: " + said + "; correct or simplify it");
}

}  // namespace phi3mobile
