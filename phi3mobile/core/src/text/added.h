// Tokens that are matched in a text before any other.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace phi3mobile {

struct AddedToken {
  std::string text;
  int64_t id = 0;
  bool lstrip = false, rstrip = false;  // it swallows the whitespace beside it
  bool single_word = false;             // not beside a letter, number or _
  bool normalized = false;              // matched in normalized text
  bool special = true;                  // it structures a text (control); else it is a word like any other
};

// Several texts in one: leftmost, and of several there the longest.
class AnyOf {
 public:
  explicit AnyOf(const std::vector<std::string>& texts);  // empty ones are left out
  bool none() const { return count_ == 0; }
  // The first match from `from` on: from `start` to `stop`, the number of its text; false: there is none.
  bool find(std::string_view in, size_t from, size_t& start, size_t& stop, size_t& number) const;

 private:
  std::vector<int64_t> number_of_ = {-1};        // node -> the text that ends there
  std::unordered_map<uint64_t, uint32_t> next_;  // node << 8 | byte -> node
  bool starts_[256] = {};
  size_t count_ = 0;
};

// A stretch of a text: an added token, or the text between.
struct Stretch {
  std::string_view text;
  const AddedToken* token;  // null: between
};

// Finds added tokens as the library `tokenizers` does.
class AddedFinder {
 public:
  // texts: what each token is found by, its own or the normalized one; of equal texts the last token counts.
  AddedFinder(std::vector<AddedToken> tokens, const std::vector<std::string>& texts);
  // apart: what lies in the whitespace that another swallowed is no token.
  std::vector<Stretch> find(std::string_view text, bool apart = false) const;

 private:
  std::vector<AddedToken> tokens_;
  AnyOf any_;
};

}  // namespace phi3mobile
