#include "text/chat.h"

#include "base/error.h"
#include "text/repr.h"
#include "text/unicode.h"

#include <algorithm>
#include <array>

namespace phi3mobile {

namespace {

constexpr std::array<const char*, 3> kRoles = {"system", "user", "assistant"};

bool is_role(const Json& role) {
  return role.is_string() && std::find(kRoles.begin(), kRoles.end(), role.string()) != kRoles.end();
}

const std::string& segment(const Json& segments, const char* name) {
  if (!segments[name].is_string()) {
    throw InputError("the chat segments lack a text \"" + std::string(name) + "\": export the bundle again");
  }
  return segments[name].string();
}

bool lists(const Json& roles, const std::string& role) {
  if (!roles.is_array()) return false;
  const Json::Array& all = roles.array();
  return std::any_of(all.begin(), all.end(), [&](const Json& one) { return one.is_string() && one.string() == role; });
}

}  // namespace

void check_messages(const Json& messages) {
  if (!messages.is_array() || messages.array().empty()) {
    throw InputError(R"(messages is empty or not a list; give at least {"role": "user", "content": "..."})");
  }
  const Json::Array& all = messages.array();
  for (size_t i = 0; i < all.size(); ++i) {
    const std::string number = std::to_string(i);
    if (!is_role(all[i]["role"])) {
      const Json& role = all[i].is_object() ? all[i]["role"] : all[i];
      throw InputError("message " + number + " has role " + repr(role) + "; allowed: system, user, assistant");
    }
    if (!all[i]["content"].is_string()) {
      throw InputError("message " + number + " (" + all[i]["role"].string() + ") needs a text \"content\"");
    }
  }
  const std::string& last = all.back()["role"].string();
  if (last != "user") throw InputError("the last message is from " + repr(last) + "; it must be the user's");
}

std::vector<Span> spans(const Json& segments, const Json& messages) {
  check_messages(messages);
  if (!segments.is_object()) {
    throw InputError("this chat template has no segments, which the core needs: export with another template (data.template)");
  }
  const bool drop = segments["drop_empty_system"].is_bool() && segments["drop_empty_system"].boolean();
  std::vector<Span> found = {{segment(segments, "bos"), true}};
  bool first = true;
  for (const Json& message : messages.array()) {
    const std::string &role = message["role"].string(), &content = message["content"].string();
    if (drop && role == "system" && content.empty()) continue;
    if (first && role != "system") found.push_back({segment(segments, "default_system"), true});
    first = false;
    const Json& around = segments[role];
    if (around.is_null()) throw InputError("this chat template has no " + repr(role) + " role; leave such messages out");
    const bool pair = around.is_array() && around.array().size() == 2;
    if (!pair || !around.array()[0].is_string() || !around.array()[1].is_string()) {
      throw InputError("the chat segments of " + repr(role) + " are not two texts: export the bundle again");
    }
    const bool trim = lists(segments["trim"], role);
    found.push_back({around.array()[0].string(), true});
    found.push_back({trim ? std::string(stripped(content)) : content, false});
    found.push_back({around.array()[1].string(), true});
  }
  found.push_back({segment(segments, "generation"), true});
  return found;
}

}  // namespace phi3mobile
