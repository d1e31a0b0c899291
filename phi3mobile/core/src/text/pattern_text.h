// A pattern while it is read: how far, and what is wrong with it.
#pragma once

#include <string_view>

namespace phi3mobile {

struct PatternText {
  std::string_view text;
  size_t at = 0;
  bool ignore_case = false;

  bool at_end() const { return at == text.size(); }
  bool sees(std::string_view next) const { return text.substr(at, next.size()) == next; }
  bool take(std::string_view next) {
    if (!sees(next)) return false;
    at += next.size();
    return true;
  }
  // InputError: the pattern is not understood.
  [[noreturn]] void wrong(const char* why) const;
  [[noreturn]] void unread(const char* what) const;
};

}  // namespace phi3mobile
