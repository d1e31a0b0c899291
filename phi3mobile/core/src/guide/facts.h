// What objects of keywords that hold together, references and choices taken apart, say of a value.
#pragma once

#include "base/json.h"

#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace phi3mobile {

using Nodes = std::vector<const Json*>;  // schemas that hold together
struct Place {
  Nodes nodes;       // the schemas that hold there
  std::string path;  // in the schema
};
struct Bound {
  double at;
  bool open;  // it is left out itself
};

// Kinds of values, as bits: a number is an integer or has a fraction.
enum Kind : unsigned {
  kNull = 1,
  kBoolean = 2,
  kString = 4,
  kArray = 8,
  kObject = 16,
  kInteger = 32,
  kFraction = 64,
  kAny = 127
};
constexpr unsigned kNumbers = kInteger | kFraction;

unsigned kinds(const Nodes& plain);  // that are left
// The values that const and enum leave, each as its JSON text, where 1.0 is 1; none: they leave all.
std::optional<std::set<std::string>> values(const Nodes& plain);
std::pair<Bound, Bound> range_of(const Nodes& plain);
// The schema of a text or number whose parts could exclude each other; null: llguidance sees for itself.
Json leaf(const Nodes& plain);
Json bare(const Json& node);  // without references and choices

std::vector<std::string> required(const Nodes& plain);
std::vector<std::string> declared(const Nodes& plain);
std::vector<std::string> patterns(const Nodes& plain);
// The greatest of a count; 0 where nobody says.
int64_t most(const Nodes& plain, const char* key);
Nodes further(const Nodes& plain);                         // of a property that is neither declared nor matched by a pattern
Nodes named(const Nodes& plain, const std::string& name);  // of the property `name`
Nodes matched(const Nodes& plain, const std::string& pattern);  // of an undeclared property that `pattern` matches

// The places of an object's or array's values: those that it has in any case, and the others.
struct Inside {
  std::vector<Place> sure, others;
};
Inside inside(const Nodes& plain, const std::string& path);

}  // namespace phi3mobile
