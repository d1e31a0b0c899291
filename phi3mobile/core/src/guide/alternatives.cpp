#include "guide/alternatives.h"

#include <algorithm>
#include <set>

namespace phi3mobile {

namespace {

constexpr size_t kMost = 2'000;
constexpr int kDepth = 6;  // of properties that tell two schemas apart

using Names = std::set<size_t>;  // of definitions

class Choices {
 public:
  explicit Choices(const Schemas& schemas) : schemas_(schemas) {}

  // checked: InputError where two choices of what was oneOf may hold at once.
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
      if (found.size() + waiting.size() > kMost) throw wrong_schema("its choices have too many combinations", path);
    }
    if (circular && found.empty()) throw wrong_schema("a $ref leads back to itself", path);
    return found;
  }

 private:
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
};

}  // namespace

std::vector<Nodes> alternatives(const Schemas& schemas, const Nodes& nodes, const std::string& path) {
  return Choices(schemas).alternatives(nodes, path, true);
}

}  // namespace phi3mobile
