#include "guide/facts.h"

#include "guide/engine.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace phi3mobile {

namespace {

constexpr const char* kLeaf[] = {"type", "const", "enum", "minLength", "maxLength", "pattern", "format", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "multipleOf"};

void add(std::vector<std::string>& names, const std::string& name) {
  if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
}

std::vector<std::string> names_in(const Nodes& plain, const char* key) {
  std::vector<std::string> found;
  for (const Json* node : plain) {
    const Json& some = (*node)[key];
    if (some.is_array()) {
      for (const Json& name : some.array()) add(found, name.string());
    } else if (some.is_object()) {
      for (const auto& member : some.object()) add(found, member.first);
    }
  }
  return found;
}

unsigned kind_of(const std::string& name) {
  if (name == "number") return kNumbers;
  constexpr const char* names[] = {"null", "boolean", "string", "array", "object", "integer"};
  for (unsigned i = 0; i < 6; ++i) {
    if (name == names[i]) return 1u << i;
  }
  return 0;
}

// Of a constant's text.
unsigned kind_of_text(const std::string& text) {
  if (text[0] == 'n') return kNull;
  if (text[0] == 't' || text[0] == 'f') return kBoolean;
  if (text[0] == '"') return kString;
  return text.find_first_of(".e") == text.npos ? kInteger : kFraction;
}

std::string text_of(const Json& value) {
  const bool whole = value.is_number() && value.number() == std::floor(value.number());
  return whole ? std::to_string(int64_t(value.number())) : value.dump();
}

void append(Nodes& to, const Nodes& some) { to.insert(to.end(), some.begin(), some.end()); }

}  // namespace

std::optional<std::set<std::string>> values(const Nodes& plain) {
  std::optional<std::set<std::string>> left;
  const auto keep = [&](const Json::Array& some) {
    std::set<std::string> texts;
    for (const Json& one : some) {
      if (std::string text = text_of(one); !left || left->count(text)) texts.insert(std::move(text));
    }
    left = std::move(texts);
  };
  for (const Json* node : plain) {
    if (node->has("const")) keep({(*node)["const"]});
    if (node->has("enum")) keep((*node)["enum"].array());
  }
  return left;
}

unsigned kinds(const Nodes& plain) {
  unsigned left = kAny;
  for (const Json* node : plain) {
    if (!node->has("type")) continue;
    unsigned said = 0;
    for (const Json& name : (*node)["type"].array()) said |= kind_of(name.string());
    left &= said;
  }
  if (const auto listed = values(plain)) {
    unsigned said = 0;
    for (const std::string& text : *listed) said |= kind_of_text(text);
    left &= said;
  }
  return left;
}

std::pair<Bound, Bound> range_of(const Nodes& plain) {
  Bound low{-std::numeric_limits<double>::infinity(), false}, high{std::numeric_limits<double>::infinity(), false};
  for (const Json* node : plain) {
    for (const auto& [key, value] : node->object()) {
      const bool open = key[0] == 'e';
      if (key == "minimum" || key == "exclusiveMinimum") {
        const Bound bound{value.number(), open};
        if (bound.at > low.at || (bound.at == low.at && open && !low.open)) low = bound;
      } else if (key == "maximum" || key == "exclusiveMaximum") {
        const Bound bound{value.number(), open};
        if (bound.at < high.at || (bound.at == high.at && open && !high.open)) high = bound;
      }
    }
  }
  return {low, high};
}

Json leaf(const Nodes& plain) {
  Json::Array parts;
  bool excluding = false;
  for (const Json* node : plain) {
    Json part{Json::Object()};
    for (const char* key : kLeaf) {
      if (node->has(key)) part.set(key, (*node)[key]);
    }
    excluding |= part.has("pattern") || part.has("format") || part.has("multipleOf");
    if (!part.object().empty()) parts.push_back(std::move(part));
  }
  if (!excluding) return Json();
  Json made{Json::Object()};
  made.set("allOf", std::move(parts));
  return made;
}

std::vector<std::string> required(const Nodes& plain) { return names_in(plain, "required"); }
std::vector<std::string> declared(const Nodes& plain) { return names_in(plain, "properties"); }
std::vector<std::string> patterns(const Nodes& plain) { return names_in(plain, "patternProperties"); }

int64_t most(const Nodes& plain, const char* key) {
  int64_t found = 0;
  for (const Json* node : plain) {
    if (node->has(key)) found = std::max(found, (*node)[key].integer());
  }
  return found;
}

Nodes further(const Nodes& plain) {
  Nodes found;
  for (const Json* node : plain) {
    if (node->has("additionalProperties")) found.push_back(&(*node)["additionalProperties"]);
  }
  return found;
}

Nodes named(const Nodes& plain, const std::string& name) {
  Nodes found;
  for (const Json* node : plain) {
    Nodes some;
    if (const Json& by_pattern = (*node)["patternProperties"]; by_pattern.is_object()) {
      for (const auto& [pattern, schema] : by_pattern.object()) {
        if (matches(pattern, name)) some.push_back(&schema);
      }
    }
    if ((*node)["properties"].has(name)) some.push_back(&(*node)["properties"][name]);
    append(found, some.empty() ? further({node}) : some);
  }
  return found;
}

Nodes matched(const Nodes& plain, const std::string& pattern) {
  Nodes found;
  for (const Json* node : plain) {
    const Json& some = (*node)["patternProperties"];
    append(found, some.has(pattern) ? Nodes{&some[pattern]} : further({node}));
  }
  return found;
}

Inside inside(const Nodes& plain, const std::string& path) {
  Inside found;
  const unsigned left = kinds(plain);
  if (left & kObject) {
    const auto always = required(plain);
    auto names = declared(plain);
    for (const std::string& name : always) add(names, name);
    for (const std::string& name : names) {
      const bool sure = std::find(always.begin(), always.end(), name) != always.end();
      (sure ? found.sure : found.others).push_back({named(plain, name), path + "/" + name});
    }
    for (const std::string& pattern : patterns(plain)) found.others.push_back({matched(plain, pattern), path + "/" + pattern});
    found.others.push_back({further(plain), path + "/*"});
  }
  if (left & kArray) {
    const int64_t least = most(plain, "minItems");
    size_t first = 0;
    for (const Json* node : plain) {
      if (node->has("prefixItems")) first = std::max(first, (*node)["prefixItems"].array().size());
    }
    for (size_t i = 0; i <= first; ++i) {
      Nodes some;
      for (const Json* node : plain) {
        const Json& prefix = (*node)["prefixItems"];
        if (prefix.is_array() && i < prefix.array().size())
          some.push_back(&prefix.array()[i]);
        else if (node->has("items"))
          some.push_back(&(*node)["items"]);
      }
      (int64_t(i) < least ? found.sure : found.others).push_back({std::move(some), path + "/" + std::to_string(i)});
    }
  }
  return found;
}

Json bare(const Json& node) {
  Json::Object kept;
  for (const auto& member : node.object()) {
    if (member.first != "allOf" && member.first != "anyOf" && member.first != "$ref") kept.push_back(member);
  }
  return kept;
}

}  // namespace phi3mobile
