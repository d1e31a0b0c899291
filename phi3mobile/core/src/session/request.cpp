#include "session/request.h"

#include "base/error.h"
#include "guide/guide.h"
#include "guide/lines.h"
#include "text/repr.h"

#include <algorithm>

namespace phi3mobile {

namespace {

constexpr int64_t kMaxTokens = 512;  // of an answer, where nobody says

constexpr const char* kKeys[] = {"messages", "prompt", "max_tokens", "stop", "overflow", "lookup", "repetition", "temperature",
    "top_k", "top_p", "min_p", "repetition_penalty", "seed", "tools", "schema", "regex", "grammar", "additional_properties"};

}  // namespace

void check_keys(const Json& request) {
  if (!request.is_object()) throw InputError("the request is no JSON object; give one with messages or a prompt");
  for (const auto& member : request.object()) {
    const std::string& name = member.first;
    const bool known = std::any_of(std::begin(kKeys), std::end(kKeys), [&](const char* key) { return name == key; });
    if (!known)
      throw InputError("the request has the key " + quoted(name) + "; allowed are the arguments of p3m_session_start");
  }
  if (request["messages"].is_null() == request["prompt"].is_null()) {
    throw InputError("the request has messages and a prompt, or neither: give one of them");
  }
}

bool flag(const Json& request, const char* name) {
  const Json& value = request[name];
  if (!value.is_null() && !value.is_bool())
    throw InputError(std::string(name) + " is " + value.dump() + "; it must be true or false");
  return value.is_bool() && value.boolean();
}

std::optional<int64_t> max_tokens(const Json& request) {
  if (!request.has("max_tokens")) return kMaxTokens;
  const Json& value = request["max_tokens"];
  if (value.is_null()) return std::nullopt;
  if (!value.is_integer() || value.integer() < 1) {
    throw InputError("max_tokens is " + value.dump() + "; it must be an integer, 1 or more, or null for no limit");
  }
  return value.integer();
}

std::vector<std::string> stops(const Json& request) {
  const Json& value = request["stop"];
  std::vector<std::string> found;
  bool ok = value.is_null() || value.is_array();
  if (ok && value.is_array()) {
    for (const Json& text : value.array()) {
      ok &= text.is_string() && !text.string().empty();
      if (ok) found.push_back(text.string());
    }
  }
  if (!ok) throw InputError("stop is " + value.dump() + "; it must be a list of strings, none of them empty");
  return found;
}

bool slides(const Json& request) {
  const Json& value = request["overflow"];
  const bool slide = value.is_string() && value.string() == "slide";
  if (!value.is_null() && !slide && !(value.is_string() && value.string() == "stop")) {
    throw InputError("overflow is " + value.dump() + "; it must be \"stop\" or \"slide\"");
  }
  return slide;
}

Json grammar_asked(const Json& request) {
  const Json &schema = request["schema"], &regex = request["regex"], &grammar = request["grammar"];
  const int given = !schema.is_null() + !regex.is_null() + !grammar.is_null();
  const bool additional = flag(request, "additional_properties");
  if (given > 1) throw InputError("schema, regex and grammar each say what the answer may be: give one of them");
  if (additional && schema.is_null()) throw InputError("additional_properties was given without a schema: leave it out");
  if (given && !request["tools"].is_null()) {
    throw InputError("tools and a guide both say what the answer may be: give one of them");
  }
  if (!given) return Json();
  llguidance_version();  // this build has it
  if (!schema.is_null()) return json_grammar(schema, additional);
  const char* what = regex.is_null() ? "grammar" : "regex";
  const Json& text = request[what];
  if (!text.is_string()) {
    throw InputError("the " + std::string(what) + " is " + cut(repr(text), 80) + "; it must be a text that is not empty");
  }
  return regex.is_null() ? lark_grammar(text.string()) : regex_grammar(text.string());
}

}  // namespace phi3mobile
