#include "guide/engine.h"

#include "guide/llguidance.h"

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

namespace phi3mobile {

namespace {

constexpr size_t kKept = 4096;

Json with_options(const Json& schema, Json options) {
  Json given = schema, named{Json::Object()}, grammar{Json::Object()};
  given.set("x-guidance", std::move(options));
  named.set("name", "json_schema");
  named.set("json_schema", std::move(given));
  grammar.set("grammars", Json::Array{std::move(named)});
  return grammar;
}

}  // namespace

Json guidance_options() {
  Json options{Json::Object()};
  options.set("whitespace_pattern", "( |\\n {0,16})?");
  options.set("json_allowed_escapes", "nrbtf\\\"");
  return options;
}

Json grammar_of(const Json& schema) { return with_options(schema, guidance_options()); }

std::string refusal(const Json& schema) { return grammar_refusal(grammar_of(schema)); }

bool matches(const std::string& pattern, const std::string& name) {
  thread_local std::map<std::pair<std::string, std::string>, bool> known;
  if (known.size() >= kKept) known.clear();
  const auto [found, is_new] = known.try_emplace({pattern, name}, false);
  if (is_new) {
    Json schema{Json::Object()};
    schema.set("type", "string");
    schema.set("pattern", pattern);
    schema.set("const", name);
    found->second = refusal(schema).empty();
  }
  return found->second;
}

bool stuck(const Json& schema, const std::string& after) {
  Json tight = guidance_options();
  tight.set("whitespace_pattern", Json());
  tight.set("whitespace_flexible", false);
  Matcher matcher(bytes_vocabulary(), with_options(schema, std::move(tight)));
  if (matcher.is_error()) return false;
  std::vector<int64_t> bytes;
  for (const char byte : after) bytes.push_back(uint8_t(byte));
  if (!matcher.consume(bytes)) return true;
  const auto& allowed = matcher.allowed();
  return std::all_of(allowed.begin(), allowed.end(), [](uint32_t word) { return word == 0; });
}

}  // namespace phi3mobile
