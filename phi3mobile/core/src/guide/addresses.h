// What a $ref names: the addresses of a schema's parts ($id, $anchor, JSON pointers), within the one document.
#pragma once

#include "base/json.h"

#include <map>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace phi3mobile {

// Of a JSON document, which stays where it is. An object is known by its place: `find` wants the one that the reference stands
// in.
class Addresses {
 public:
  explicit Addresses(const Json& document);
  // The part that `reference` in the object `source` names. Null: there is none, `why` may say more.
  const Json* find(const std::string& reference, const Json& source, std::string* why) const;

 private:
  void locate(const Json& node, std::string base);

  std::unordered_map<std::string, const Json*> resources_;
  std::unordered_map<const Json*, std::string> bases_;  // an object -> the address of its resource
};

// Edges of a graph: node -> (node, levels to it).
using Edges = std::vector<std::vector<std::pair<size_t, int>>>;
// Levels of a walk from node 0 that enters each node at its first mention.
int deepest(const Edges& edges);

// An address from the text of a reference, as Python's urllib.parse.urljoin.
std::string joined_address(const std::string& base, const std::string& reference);

}  // namespace phi3mobile
