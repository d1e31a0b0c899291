#include "session/tools.h"

#include "base/error.h"
#include "base/utf8.h"
#include "guide/engine.h"
#include "guide/guide.h"
#include "guide/schema.h"
#include "text/repr.h"

#include <algorithm>
#include <string_view>

namespace phi3mobile {

namespace {

constexpr std::string_view kSpace = " \t\r\n", kMarked = "functools";
constexpr int kMost = 8;                                       // calls of one answer
constexpr const char* kControl[] = {"<|tool|>", "<|/tool|>"};  // phi-4-mini's, around the list of tools

std::string told_in_words(const std::string& tools) {
  return "You can call functions. These are known, each with a JSON schema of its arguments:\n" + tools +
         "\nTo call one, answer with nothing but {\"name\": \"...\", \"arguments\": {...}}, or with a list of such to call "
         "several. "
         "What they give is told in the next message. Where no function is needed, answer in words.";
}

std::string_view after_space(std::string_view text) {
  const size_t start = text.find_first_not_of(kSpace);
  return start == std::string_view::npos ? std::string_view() : text.substr(start);
}

bool is_name(const Json& name) {
  if (!name.is_string() || name.string().empty() || name.string().size() > 64) return false;
  const auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; };
  const std::string& text = name.string();
  return letter(text[0]) && std::all_of(text.begin(), text.end(),
                                [&](char c) { return letter(c) || (c >= '0' && c <= '9') || c == '.' || c == '-'; });
}

// name, description and parameters of a tool.
Json checked(const Json& given, size_t index) {
  const bool openais = given["type"].is_string() && given["type"].string() == "function" && given["function"].is_object();
  const Json& tool = openais ? given["function"] : given;
  if (!is_name(tool["name"])) {
    throw InputError("tool " + std::to_string(index) + " has the name " + repr(tool["name"]) +
                     "; it must be letters, digits, _ . or -, at most 64, no digit first");
  }
  const std::string name = tool["name"].string();
  std::string unknown;
  for (const auto& member : tool.object()) {
    if (member.first == "name" || member.first == "description" || member.first == "parameters") continue;
    unknown += (unknown.empty() ? "" : ", ") + member.first;
  }
  if (!unknown.empty())
    throw InputError("the tool " + name + " has " + unknown + "; allowed are name, description and parameters");
  Json empty{Json::Object()};
  empty.set("type", "object");
  empty.set("properties", Json(Json::Object()));
  const Json description = tool.has("description") ? tool["description"] : Json("");
  const Json parameters = tool.has("parameters") ? tool["parameters"] : empty;
  if (!description.is_string() || !parameters.is_object()) {
    throw InputError("the tool " + name + " needs a text as its description and a JSON schema object as its parameters");
  }
  Json found{Json::Object()};
  found.set("name", name);
  found.set("description", description);
  found.set("parameters", parameters);
  return found;
}

Json message(const std::string& role, const std::string& content) {
  Json found{Json::Object()};
  found.set("role", role);
  found.set("content", content);
  return found;
}

bool is_role(const Json& message, const char* role) { return message["role"].string() == role; }

// A private character that is in no content.
std::string unused(const Json::Array& messages) {
  for (uint32_t code = 0xF8FF; code > 0xE000; --code) {
    std::string mark;
    append_utf8(mark, code);
    const bool taken = std::any_of(messages.begin(), messages.end(),
        [&](const Json& one) { return one["content"].string().find(mark) != std::string::npos; });
    if (!taken) return mark;
  }
  throw InputError("the messages have every private character: leave some out");
}

}  // namespace

Json::Array results_as_messages(const Json::Array& messages) {
  Json::Array told;
  bool result_before = false;
  for (size_t i = 0; i < messages.size(); ++i) {
    const bool result = is_role(messages[i], "tool");
    if (!result) {
      told.push_back(messages[i]);
    } else {
      if (!messages[i]["name"].is_string() || !messages[i]["content"].is_string()) {
        throw InputError("message " + std::to_string(i) + " is a tool's result without a name or a text; " +
                         R"(give {"role": "tool", "name": "...", "content": "..."})");
      }
      const std::string text = "Result of " + messages[i]["name"].string() + ": " + messages[i]["content"].string();
      if (result_before) {
        told.back() = message("user", told.back()["content"].string() + "\n" + text);
      } else {
        told.push_back(message("user", text));
      }
    }
    result_before = result;
  }
  return told;
}

Tools::Tools(const Json& tools) {
  if (!tools.is_array() || tools.array().empty()) {
    throw InputError(R"(tools is empty or no list; give at least {"name": "...", "parameters": {...}}, or leave it out)");
  }
  for (const Json& tool : tools.array()) {
    Json found = checked(tool, tools_.size());
    if (has(found["name"])) throw InputError("two tools have the name " + repr(found["name"]) + ": give each its own");
    tools_.push_back(std::move(found));
  }
}

bool Tools::has(const Json& name) const {
  return name.is_string() &&
         std::any_of(tools_.begin(), tools_.end(), [&](const Json& tool) { return tool["name"].string() == name.string(); });
}

bool Tools::known_to(const Tokenizer& tokenizer) {
  return tokenizer.special_ids().count(kControl[0]) && tokenizer.special_ids().count(kControl[1]);
}

std::pair<Json::Array, std::string> Tools::told(const Json::Array& messages, bool system, bool control) const {
  Json::Array told = results_as_messages(messages);
  const std::string listed = Json(tools_).dump(true), mark = control ? unused(told) : "";
  const std::string words = control ? mark + listed + mark : told_in_words(listed), between = control ? "" : "\n\n";
  const std::string role = told[0]["role"].string(), content = told[0]["content"].string();
  if (role == "system") {
    told[0] = message(role, content.empty() ? words : content + between + words);
  } else if (!system) {
    told[0] = message(role, content.empty() ? words : words + between + content);
  } else {
    told.insert(told.begin(), message("system", words));
  }
  return {std::move(told), mark};
}

Json Tools::grammar() const {
  Json::Array calls;
  for (const Json& tool : tools_) {
    Json name{Json::Object()}, parts{Json::Object()}, call{Json::Object()};
    name.set("const", tool["name"]);
    parts.set("name", std::move(name));
    parts.set("arguments", tool["parameters"]);
    call.set("type", "object");
    call.set("properties", std::move(parts));
    call.set("required", Json::Array{"name", "arguments"});
    calls.push_back(std::move(call));
  }
  Json asked{Json::Object()};
  asked.set("anyOf", calls);
  Json one = followed(calls.size() == 1 ? calls[0] : asked), several{Json::Object()};
  // A schema's definitions belong to its root.
  const Json definitions = one.take("$defs");
  Json::Object& members = one.object();
  members.erase(std::remove_if(members.begin(), members.end(), [](const auto& member) { return member.first == "$defs"; }),
      members.end());
  several.set("type", "array");
  several.set("items", one);
  several.set("minItems", 1);
  several.set("maxItems", kMost);
  for (Json* schema : {&one, &several}) {
    if (!definitions.is_null()) schema->set("$defs", definitions);
    schema->set("x-guidance", guidance_options());
  }
  const std::string space = "[ \\t\\r\\n]*", lead = space + "(" + std::string(kMarked) + ")?" + space;
  return lark_grammar("start: WORDS | LEAD one | LEAD several\nLEAD: /" + lead + "/\nWORDS: /(?s:.*)/ & ~/" + lead +
                      "[\\[{](?s:.*)/\none: %json " + one.dump(true) + "\nseveral: %json " + several.dump(true) + "\n");
}

std::vector<Json> Tools::read(const std::string& text) const {
  std::string_view body = after_space(text);
  if (body.substr(0, kMarked.size()) == kMarked) body.remove_prefix(kMarked.size());
  Json value;
  try {
    value = Json::parse(body, "the answer");
  } catch (const InputError&) {
    return {};
  }
  std::vector<Json> calls;
  for (const Json& call : value.is_array() ? value.array() : Json::Array{value}) {
    const Json& arguments = call.has("arguments") ? call["arguments"] : call["parameters"];
    if (!arguments.is_object() || !has(call["name"])) return {};
    Json found{Json::Object()};
    found.set("name", call["name"]);
    found.set("arguments", arguments);
    calls.push_back(std::move(found));
  }
  return calls;
}

std::vector<Span> marked_spans(const std::vector<Span>& parts, const std::string& mark) {
  std::vector<Span> found;
  size_t marks = 0;
  for (const Span& part : parts) {
    size_t start = 0;
    for (size_t at; (at = part.text.find(mark, start)) != std::string::npos; start = at + mark.size()) {
      found.push_back({part.text.substr(start, at - start), part.trusted});
      found.push_back({kControl[std::min<size_t>(marks++, 1)], true});
    }
    found.push_back({part.text.substr(start), part.trusted});
  }
  return found;
}

std::string CallGate::push(const std::string& text) {
  if (opened_) return text;
  held_ += text;
  const std::string_view start = after_space(held_);
  const size_t common = std::min(start.size(), kMarked.size());
  if (start.empty() || start[0] == '[' || start[0] == '{' || start.substr(0, common) == kMarked.substr(0, common)) return "";
  opened_ = true;
  return finish();
}

}  // namespace phi3mobile
