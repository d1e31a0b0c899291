#include "guide/places.h"

#include "guide/engine.h"
#include "guide/facts.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace phi3mobile {

namespace {

constexpr size_t kPlaces = 20'000, kAlternatives = 2'000;
constexpr int kDepth = 6;  // of properties that tell two schemas apart

using Key = std::set<const Json*>;
using Names = std::set<size_t>;  // of definitions

bool is_false(const Json& schema) { return schema.is_bool() && !schema.boolean(); }

// All schemas that are only true or false are the same two.
Key key_of(const Nodes& nodes) {
  static const Json always(true), never(false);
  Key key;
  for (const Json* node : nodes) key.insert(!node->is_bool() ? node : node->boolean() ? &always : &never);
  return key;
}

bool none_false(const Nodes& nodes) {
  return std::none_of(nodes.begin(), nodes.end(), [](const Json* node) { return is_false(*node); });
}

// llguidance takes 0 for a number above 0 and at most 0.5: a whole number that a short range begins with and leaves out.
void check_range(const Nodes& plain, const std::string& path) {
  const auto [low, high] = range_of(plain);
  if (!(kinds(plain) & kFraction) || values(plain) || !(low.at < high.at)) return;
  if ((low.open && low.at >= 0 && low.at == std::floor(low.at) && high.at < low.at + 1) ||
      (high.open && high.at <= 0 && high.at == std::floor(high.at) && low.at > high.at - 1)) {
    char text[120];
    std::snprintf(text, sizeof text, "the range from %g to %g would have its open end; close it", low.at, high.at);
    throw wrong_schema(text, path);
  }
}

// llguidance has for a name that a pattern matches a way that ends nowhere, and counts a name twice that comes twice.
void check_object(const Nodes& plain, const std::string& path) {
  const auto asked = required(plain), names = declared(plain), some = patterns(plain);
  for (const std::string& pattern : some) {
    for (const std::string& name : names) {
      if (matches(pattern, name)) {
        throw wrong_schema("patternProperties " + pattern + " matches " + name + " too, which is declared", path);
      }
    }
  }
  const bool free = none_false(further(plain));
  bool any = free;
  Json allowed{Json::Object()};
  for (const std::string& pattern : some) {
    const bool may = none_false(matched(plain, pattern));
    any |= may;
    allowed.set(pattern, may);
  }
  if (most(plain, "minProperties") - int64_t(asked.size()) > 1 && any) {
    throw wrong_schema(
        "minProperties asks for more than one name beside the required ones, and could be met by one twice", path);
  }
  if (some.empty()) return;
  Json one{Json::Object()}, properties{Json::Object()}, schema{Json::Object()};
  one.set("const", 1);
  std::string begun = "{";
  Json::Array listed;
  for (const std::string& name : asked) {
    properties.set(name, one);
    listed.emplace_back(name);
    begun += quoted(name) + ":1,";
  }
  schema.set("type", "object");
  schema.set("patternProperties", std::move(allowed));
  schema.set("additionalProperties", free);
  schema.set("properties", std::move(properties));
  schema.set("required", std::move(listed));
  schema.set("minProperties", int64_t(asked.size()) + 1);
  if (refusal(schema).empty() && stuck(schema, begun)) {
    throw wrong_schema("patternProperties leave no further name; declare the names and use additionalProperties false", path);
  }
}

class Places {
 public:
  explicit Places(const Schemas& schemas) : schemas_(schemas) {}

  // Checks a place; gives those in it.
  std::vector<Place> visit(const Place& place) {
    const auto [found, is_new] = index_.emplace(key_of(place.nodes), entries_.size());
    if (!is_new) return {};
    if (entries_.size() >= kPlaces) throw wrong_schema("it has too many places for different values");
    const size_t index = found->second;
    entries_.push_back({place.path, {}});
    std::vector<Place> places;
    std::vector<std::vector<Key>> needs;
    bool empty = false;
    for (const Nodes& plain : alternatives(place.nodes, place.path, true)) {
      check_range(plain, place.path);
      const unsigned left = kinds(plain);
      if (!(left & ~(kNumbers | kString))) {
        const Json schema = leaf(plain);
        const bool refused = !schema.is_null() && !refusal(schema).empty();
        if (schema.is_null() || !(refused || stuck(schema)))
          needs.emplace_back();
        else if (!refused)
          empty = true;
        continue;
      }
      if (left & kObject) check_object(plain, place.path);
      Inside in = inside(plain, place.path);
      needs.emplace_back();
      if (!(left & (left - 1))) {  // one kind
        for (const Place& one : in.sure) needs.back().push_back(key_of(one.nodes));
      }
      for (auto* some : {&in.sure, &in.others}) std::move(some->begin(), some->end(), std::back_inserter(places));
    }
    if (empty && needs.empty()) throw wrong_schema("no text or number is all that is asked", place.path);
    entries_[index].needs = std::move(needs);
    return places;
  }

  // InputError if a place, or what it must have, must have another like it, and so on without an end.
  void check_ends() const {
    std::vector<std::vector<std::vector<size_t>>> needs(entries_.size());
    for (size_t i = 0; i < entries_.size(); ++i) {
      for (const auto& alternative : entries_[i].needs) {
        needs[i].emplace_back();
        for (const Key& key : alternative) needs[i].back().push_back(index_.at(key));
      }
    }
    std::vector<char> possible(needs.size(), 1), ending(needs.size(), 0);
    const auto filled = [&](size_t place, const std::vector<char>& by) {
      return std::any_of(needs[place].begin(), needs[place].end(), [&](const auto& alternative) {
        return std::all_of(alternative.begin(), alternative.end(), [&](size_t need) { return by[need]; });
      });
    };
    for (bool changed = true; changed;) {
      changed = false;
      for (size_t i = 0; i < needs.size(); ++i) {
        if (possible[i] && !filled(i, possible)) possible[i] = 0, changed = true;
      }
    }
    for (bool changed = true; changed;) {
      changed = false;
      for (size_t i = 0; i < needs.size(); ++i) {
        if (possible[i] && !ending[i] && filled(i, ending)) ending[i] = 1, changed = true;
      }
    }
    for (size_t i = 0; i < needs.size(); ++i) {
      if (possible[i] && !ending[i]) {
        throw wrong_schema("a value here must hold another like it, without an end", entries_[i].path);
      }
    }
    if (!possible[0]) throw wrong_schema("nothing satisfies it");
  }

 private:
  struct Entry {
    std::string path;
    std::vector<std::vector<Key>> needs;  // per alternative, the places that it has in any case
  };
  struct Todo {
    const Json* node;
    Names through;
  };
  struct Choice {
    const Json::Array* branches;
    Names through;
  };
  struct Branch {            // one way to choose, as far as it is gone
    std::vector<Todo> todo;  // the next one last
    Nodes plain;
    std::vector<Choice> choices;  // the next one first
    Names taken;
  };

  // For each way to choose of anyOf the objects that hold together, references and allOf taken apart. checked: InputError where
  // two choices of what was oneOf may hold at once.
  std::vector<Nodes> alternatives(const Nodes& nodes, const std::string& path, bool checked) const {
    std::vector<Nodes> found;
    bool circular = false;
    std::vector<Branch> waiting(1);
    for (auto node = nodes.rbegin(); node != nodes.rend(); ++node) waiting[0].todo.push_back({*node, {}});
    while (!waiting.empty()) {
      Branch at = std::move(waiting.back());
      waiting.pop_back();
      if (take_apart(at, circular) && kinds(at.plain)) {
        if (at.choices.empty()) {
          found.push_back(std::move(at.plain));
          continue;
        }
        const Choice choice = std::move(at.choices.front());
        at.choices.erase(at.choices.begin());
        if (checked && schemas_.exclusive.count(choice.branches->data())) check_exclusive(at.plain, *choice.branches, path);
        for (auto branch = choice.branches->rbegin(); branch != choice.branches->rend(); ++branch) {
          waiting.push_back({{{&*branch, choice.through}}, at.plain, at.choices, at.taken});
        }
      } else {
        continue;
      }
      if (found.size() + waiting.size() > kAlternatives) throw wrong_schema("its choices have too many combinations", path);
    }
    if (circular && found.empty()) throw wrong_schema("a $ref leads back to itself", path);
    return found;
  }

  // Empties todo into plain and choices. False: nothing is valid there, or it leads back to itself.
  bool take_apart(Branch& at, bool& circular) const {
    while (!at.todo.empty()) {
      const Todo next = std::move(at.todo.back());
      at.todo.pop_back();
      const Json& node = *next.node;
      if (node.is_bool()) {
        if (node.boolean()) continue;
        return false;
      }
      at.plain.push_back(&node);
      if (const Json& all = node["allOf"]; all.is_array()) {
        for (auto one = all.array().rbegin(); one != all.array().rend(); ++one) at.todo.push_back({&*one, next.through});
      }
      if (const Json& any = node["anyOf"]; any.is_array()) at.choices.push_back({&any.array(), next.through});
      if (const Json& reference = node["$ref"]; reference.is_string()) {
        const std::string& text = reference.string();
        const size_t name = std::stoul(text.substr(text.rfind('/') + 1));
        if (next.through.count(name)) {
          circular = true;
          return false;
        }
        if (at.taken.insert(name).second) {
          Names through = next.through;
          through.insert(name);
          at.todo.push_back({&schemas_.definitions[name], std::move(through)});
        }
      }
    }
    return true;
  }

  void check_exclusive(const Nodes& plain, const Json::Array& branches, const std::string& path) const {
    std::vector<Json> shared;
    for (const Json* node : plain) shared.push_back(bare(*node));
    const auto with = [&](const Json& branch) {
      Nodes nodes;
      for (const Json& node : shared) nodes.push_back(&node);
      nodes.push_back(&branch);
      return nodes;
    };
    for (size_t i = 0; i < branches.size(); ++i) {
      for (size_t j = i + 1; j < branches.size(); ++j) {
        if (apart(with(branches[i]), with(branches[j]), 0)) continue;
        throw wrong_schema("oneOf's choices " + std::to_string(i + 1) + " and " + std::to_string(j + 1) +
                               " may hold at once; use anyOf, or give them different types or constants",
            path);
      }
    }
  }

  // Whether no value is valid under both.
  bool apart(const Nodes& one, const Nodes& other, int depth) const {
    const auto others = alternatives(other, "", false);
    for (const Nodes& a : alternatives(one, "", false)) {
      for (const Nodes& b : others) {
        if (!differ(a, b, depth)) return false;
      }
    }
    return true;
  }

  bool differ(const Nodes& one, const Nodes& other, int depth) const {
    const unsigned common = kinds(one) & kinds(other);
    const auto listed = values(one), others = values(other);
    if (listed && others) {
      return std::none_of(listed->begin(), listed->end(), [&](const std::string& text) { return others->count(text); });
    }
    if (!(common & ~kNumbers)) {
      Nodes both = one;
      both.insert(both.end(), other.begin(), other.end());
      const auto [low, high] = range_of(both);
      return !common || low.at > high.at || (low.at == high.at && (low.open || high.open));
    }
    if (common != kObject || depth >= kDepth) return false;
    auto names = required(one);
    for (const std::string& name : required(other)) names.push_back(name);
    return std::any_of(names.begin(), names.end(),
        [&](const std::string& name) { return apart(named(one, name), named(other, name), depth + 1); });
  }

  const Schemas& schemas_;
  std::vector<Entry> entries_;  // in the order of their visit
  std::map<Key, size_t> index_;
};

}  // namespace

void check_places(const Schemas& schemas) {
  Places places(schemas);
  std::deque<Place> waiting{{{&schemas.root}, ""}};
  while (!waiting.empty()) {
    const Place next = std::move(waiting.front());
    waiting.pop_front();
    for (Place& place : places.visit(next)) waiting.push_back(std::move(place));
  }
  places.check_ends();
}

}  // namespace phi3mobile
