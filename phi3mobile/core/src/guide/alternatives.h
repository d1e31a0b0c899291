// The choices of a schema: for each way to choose, the objects of keywords that then hold together.
#pragma once

#include "guide/document.h"
#include "guide/facts.h"

#include <string>
#include <vector>

namespace phi3mobile {

// For each way to choose of anyOf the objects that hold together, references and allOf taken apart. InputError: two choices of
// what was oneOf may hold at once, or a $ref leads back to itself.
std::vector<Nodes> alternatives(const Schemas& schemas, const Nodes& nodes, const std::string& path);

}  // namespace phi3mobile
