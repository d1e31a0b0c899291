#include "base/json.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace phi3mobile {

namespace {

// As Python's repr: the fewest digits that read back, an exponent from 1e16 and below 1e-4.
std::string shortest(double value) {
  char text[40];
  int digits = 1;
  do {
    std::snprintf(text, sizeof text, "%.*e", digits - 1, value);
  } while (std::strtod(text, nullptr) != value && ++digits <= 17);
  const int exponent = std::atoi(std::strchr(text, 'e') + 1);
  if (exponent < -4 || exponent >= 16) {
    std::snprintf(text, sizeof text, "%.*g", digits, value);
    return text;
  }
  std::snprintf(text, sizeof text, "%.*f", std::max(digits - 1 - exponent, 1), value);
  return text;
}

class Writer {
 public:
  explicit Writer(bool spaced) : comma_(spaced ? ", " : ","), colon_(spaced ? ": " : ":") {}

  void write(const Json& value) {
    if (value.is_null()) {
      text += "null";
    } else if (value.is_bool()) {
      text += value.boolean() ? "true" : "false";
    } else if (value.is_integer()) {
      text += std::to_string(value.integer());
    } else if (value.is_number()) {
      text += shortest(value.number());
    } else if (value.is_string()) {
      text += quoted(value.string());
    } else if (value.is_array()) {
      list('[', value.array(), ']', [&](const Json& item) { write(item); });
    } else {
      list('{', value.object(), '}', [&](const auto& member) {
        text += quoted(member.first) + colon_;
        write(member.second);
      });
    }
  }

  std::string text;

 private:
  template <class Items, class One>
  void list(char open, const Items& items, char close, One one) {
    text += open;
    bool first = true;
    for (const auto& item : items) {
      if (!first) text += comma_;
      first = false;
      one(item);
    }
    text += close;
  }

  const char *comma_, *colon_;
};

}  // namespace

std::string Json::dump(bool spaced) const {
  Writer writer(spaced);
  writer.write(*this);
  return std::move(writer.text);
}

std::string quoted(std::string_view text) {
  std::string found = "\"";
  for (const char c : text) {
    switch (c) {
      case '"':
        found += "\\\"";
        break;
      case '\\':
        found += "\\\\";
        break;
      case '\n':
        found += "\\n";
        break;
      case '\r':
        found += "\\r";
        break;
      case '\t':
        found += "\\t";
        break;
      default:
        if (uint8_t(c) < 0x20) {
          char escape[8];
          std::snprintf(escape, sizeof escape, "\\u%04x", unsigned(uint8_t(c)));
          found += escape;
        } else {
          found += c;
        }
    }
  }
  return found + '"';
}

}  // namespace phi3mobile
