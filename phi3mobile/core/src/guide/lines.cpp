#include "guide/lines.h"

#include "base/utf8.h"
#include "text/unicode.h"

namespace phi3mobile {

std::string cut(std::string_view text, size_t characters) {
  size_t at = 0;
  while (at < text.size() && characters--) next_character(text, at);
  return std::string(text.substr(0, at));
}

std::string one_line(std::string_view text) {
  std::string line;
  for (size_t at = 0; at < text.size();) {
    const size_t start = at;
    const uint32_t code = next_character(text, at);
    if (!is_space(code) && !(code >= 0x1C && code <= 0x1F))
      line += text.substr(start, at - start);
    else if (!line.empty() && line.back() != ' ')
      line += ' ';
  }
  if (!line.empty() && line.back() == ' ') line.pop_back();
  return line;
}

}  // namespace phi3mobile
