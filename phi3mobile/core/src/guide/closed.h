// Objects closed: where a schema declares names and says nothing of others, it is taken to allow no others.
// Small models fill what a schema leaves open with invented keys; OpenAI's strict form asks for the same.
#pragma once

#include "base/json.h"
#include "guide/addresses.h"

#include <string>
#include <vector>

namespace phi3mobile {

// Whether the object only refers to a schema, or chooses among some: they are closed, each for itself, and not it.
bool hands_on(const Json& node);

// What closes an object of keywords together with all that it applies.
struct Closing {
  bool closes = false;                       // else it stays as it is
  std::vector<std::string> names, patterns;  // that its own keywords do not declare
};
Closing closing(const Json& node, const Addresses& addresses);

}  // namespace phi3mobile
