#include "text/repr.h"

#include "base/utf8.h"
#include "text/unicode.h"

#include <cstdio>

namespace phi3mobile {

namespace {

void escape(uint32_t code, std::string& to) {
  char text[16];
  std::snprintf(text, sizeof text, code < 0x100 ? "\\x%02x" : code < 0x10000 ? "\\u%04x" : "\\U%08x", unsigned(code));
  to += text;
}

std::string joined(const Json::Array& items) {
  std::string text;
  for (const Json& item : items) text += (text.empty() ? "" : ", ") + repr(item);
  return text;
}

}  // namespace

std::string repr(std::string_view text) {
  const bool twice = text.find('\'') != text.npos && text.find('"') == text.npos;
  const char quote = twice ? '"' : '\'';
  std::string made(1, quote);
  for (size_t at = 0; at < text.size();) {
    const uint32_t code = next_character(text, at);
    if (code == uint32_t(quote) || code == '\\')
      made += {'\\', char(code)};
    else if (code == '\n' || code == '\r' || code == '\t')
      made += {'\\', code == '\n' ? 'n' : code == '\r' ? 'r' : 't'};
    else if (is_printable(code))
      append_utf8(made, code);
    else
      escape(code, made);
  }
  return made + quote;
}

std::string repr(const Json& value) {
  if (value.is_null()) return "None";
  if (value.is_bool()) return value.boolean() ? "True" : "False";
  if (value.is_string()) return repr(value.string());
  if (value.is_array()) return "[" + joined(value.array()) + "]";
  if (value.is_object()) {
    std::string text;
    for (const auto& [name, member] : value.object()) text += (text.empty() ? "" : ", ") + repr(name) + ": " + repr(member);
    return "{" + text + "}";
  }
  const std::string number = value.dump();
  const bool whole = number.find_first_of(".en") == number.npos;
  return value.is_integer() || !whole ? number : number + ".0";
}

}  // namespace phi3mobile
