#include "text/unicode.h"

#include "base/utf8.h"

#include <algorithm>
#include <iterator>

namespace phi3mobile {

namespace {

#include "text/unicode_tables.inc"

// The value of the run that holds `code`: runs are first code << bits | value.
template <size_t Size>
uint32_t value_of(const uint32_t (&runs)[Size], uint32_t code, int bits) {
  const auto after = std::upper_bound(runs, runs + Size, code, [bits](uint32_t c, uint32_t run) { return c < run >> bits; });
  return after[-1] & ((1u << bits) - 1);
}

std::string_view category_of(uint32_t code) {
  const uint32_t number = value_of(kCategories, code, 5);
  return number ? kCategoryNames[number - 1] : "";
}

uint32_t combining(uint32_t code) { return code < 0x300 ? 0 : value_of(kCombining, code, 8); }

constexpr uint32_t kHangul = 0xAC00, kLead = 0x1100, kVowel = 0x1161, kTail = 0x11A7, kVowels = 21, kTails = 28,
                   kSyllables = 11172;

void decompose(uint32_t code, bool compatible, std::u32string& to) {
  if (code < 0xA0) {
    to += char32_t(code);
    return;
  }
  if (code - kHangul < kSyllables) {
    const uint32_t index = code - kHangul;
    to += char32_t(kLead + index / (kVowels * kTails));
    to += char32_t(kVowel + index / kTails % kVowels);
    if (index % kTails) to += char32_t(kTail + index % kTails);
    return;
  }
  const auto found = std::lower_bound(std::begin(kDecomposed), std::end(kDecomposed), code << 1);
  if (found == std::end(kDecomposed) || *found >> 1 != code || ((*found & 1) && !compatible)) {
    to += char32_t(code);
    return;
  }
  const size_t at = size_t(found - std::begin(kDecomposed));
  for (size_t i = kPartsAt[at]; i < kPartsAt[at + 1]; ++i) decompose(kParts[i], compatible, to);
}

// Combining marks by their classes, in each run of them.
void order(std::u32string& text) {
  for (size_t at = 0; at < text.size();) {
    size_t end = at;
    while (end < text.size() && combining(text[end])) ++end;
    const auto first = text.begin();
    std::stable_sort(
        first + at, first + end, [](char32_t a, char32_t b) { return combining(uint32_t(a)) < combining(uint32_t(b)); });
    at = end + 1;
  }
}

// The character that two compose; 0: none.
uint32_t composed(uint32_t first, uint32_t second) {
  if (first - kLead < 19 && second - kVowel < kVowels) {
    return kHangul + ((first - kLead) * kVowels + second - kVowel) * kTails;
  }
  if (first - kHangul < kSyllables && (first - kHangul) % kTails == 0 && second > kTail && second - kTail < kTails) {
    return first + second - kTail;
  }
  size_t low = 0, high = std::size(kComposed) / 3;
  while (low < high) {
    const size_t middle = (low + high) / 2;
    const uint32_t* pair = kComposed + 3 * middle;
    if (pair[0] == first && pair[1] == second) return pair[2];
    if (pair[0] < first || (pair[0] == first && pair[1] < second))
      low = middle + 1;
    else
      high = middle;
  }
  return 0;
}

void compose(std::u32string& text) {
  size_t starter = text.npos, kept = 0;
  uint32_t last = 0;  // class of the character kept last after the starter
  for (const char32_t code : text) {
    const uint32_t own = combining(code);
    const bool blocked = starter != text.npos && kept > starter + 1 && last >= own;
    const uint32_t made = starter == text.npos || blocked ? 0 : composed(text[starter], code);
    if (made) {
      text[starter] = made;
      continue;
    }
    if (own == 0) starter = kept;
    last = own;
    text[kept++] = code;
  }
  text.resize(kept);
}

uint32_t lower(uint32_t code) {
  size_t low = 0, high = std::size(kLower) / 2;
  while (low < high) {
    const size_t middle = (low + high) / 2;
    if (kLower[2 * middle] == code) return kLower[2 * middle + 1];
    if (kLower[2 * middle] < code)
      low = middle + 1;
    else
      high = middle;
  }
  return code;
}

// Whether the capital sigma from `start` to `end` stands at the end of a word.
bool ends_word(std::string_view text, size_t start, size_t end) {
  uint32_t kind = 2;
  while (start > 0 && kind == 2) kind = value_of(kSigma, previous_character(text, start), 2);
  if (kind != 1) return false;
  kind = 2;
  while (end < text.size() && kind == 2) kind = value_of(kSigma, next_character(text, end), 2);
  return kind != 1;
}

}  // namespace

bool is_space(uint32_t code) {
  if (code < 0x80) return code == ' ' || (code >= '\t' && code <= '\r');
  return code == 0x85 || code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 ||
         code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

bool is_alphanumeric(uint32_t code) {
  const std::string_view name = category_of(code);
  return !name.empty() && (name[0] == 'L' || name[0] == 'N');
}

bool is_printable(uint32_t code) {
  const std::string_view name = category_of(code);
  return code == ' ' || !(name.empty() || name[0] == 'C' || name[0] == 'Z');
}

Ranges category(std::string_view name) {
  Ranges found;
  for (size_t i = 0; i + 1 < std::size(kCategories); ++i) {
    const uint32_t first = kCategories[i] >> 5, number = kCategories[i] & 31, next = kCategories[i + 1] >> 5;
    if (number == 0 || std::string_view(kCategoryNames[number - 1]).substr(0, name.size()) != name) continue;
    if (!found.empty() && found.back().second + 1 == first)
      found.back().second = next - 1;
    else
      found.emplace_back(first, next - 1);
  }
  return found;
}

const Ranges& spaces() {
  static const Ranges found = {{'\t', '\r'}, {' ', ' '}, {0x85, 0x85}, {0xA0, 0xA0}, {0x1680, 0x1680}, {0x2000, 0x200A},
      {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000}};
  return found;
}

std::string normalized(std::string_view text, Form form) {
  const auto plain = [](char c) { return uint8_t(c) < 0x80; };
  if (std::all_of(text.begin(), text.end(), plain)) return std::string(text);
  std::u32string codes;
  const bool compatible = form == Form::NFKC || form == Form::NFKD;
  for (size_t at = 0; at < text.size();) decompose(next_character(text, at), compatible, codes);
  order(codes);
  if (form == Form::NFC || form == Form::NFKC) compose(codes);
  std::string made;
  for (const char32_t code : codes) append_utf8(made, code);
  return made;
}

std::string lowered(std::string_view text) {
  std::string made;
  for (size_t at = 0; at < text.size();) {
    const size_t start = at;
    const uint32_t code = next_character(text, at);
    if (code < 0x80)
      made += char(code >= 'A' && code <= 'Z' ? code + 32 : code);
    else if (code == 0x3A3)
      append_utf8(made, ends_word(text, start, at) ? 0x3C2 : 0x3C3);
    else
      append_utf8(made, lower(code));
    if (code == 0x130) append_utf8(made, 0x307);
  }
  return made;
}

uint32_t previous_character(std::string_view text, size_t& end) {
  do {
    --end;
  } while ((uint8_t(text[end]) & 0xC0) == 0x80);
  size_t at = end;
  return next_character(text, at);
}

std::string_view without_leading_space(std::string_view text) {
  size_t start = 0;
  for (size_t at = 0; at < text.size() && is_space(next_character(text, at));) start = at;
  return text.substr(start);
}

std::string_view without_trailing_space(std::string_view text) {
  size_t end = text.size();
  for (size_t at = end; at > 0 && is_space(previous_character(text, at));) end = at;
  return text.substr(0, end);
}

std::string_view stripped(std::string_view text) {
  const auto space = [](uint32_t code) { return is_space(code) || (code >= 0x1C && code <= 0x1F); };
  size_t start = 0;
  for (size_t at = 0; at < text.size() && space(next_character(text, at));) start = at;
  size_t end = text.size();
  for (size_t at = end; at > start && space(previous_character(text, at));) end = at;
  return text.substr(start, end - start);
}

}  // namespace phi3mobile
