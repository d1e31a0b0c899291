#include "guide/places.h"

#include "guide/alternatives.h"
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

constexpr size_t kPlaces = 20'000;

using Key = std::set<const Json*>;

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
    for (const Nodes& plain : alternatives(schemas_, place.nodes, place.path)) {
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
