// What a Tokenizer stands on: its vocabulary's own ids of texts and texts of ids.
#pragma once

#include "text/added.h"
#include "text/tokenizer.h"

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace phi3mobile {

using Ids = std::vector<int64_t>;

class Backend {
 public:
  virtual ~Backend() = default;
  // Appends the ids of a text in which no control token is recognised; `first`: it starts the whole text.
  virtual void plain(std::string_view text, bool first, Ids& ids) const = 0;
  // Appends those of a whole text in which added tokens are; false: it has no way of its own, the text must be split.
  virtual bool whole(std::string_view text, Ids& ids) const = 0;
};

// What a vocabulary's files say.
struct Vocabulary {
  std::unique_ptr<Backend> backend;
  std::vector<AddedToken> added;   // of equal texts the last one counts
  std::vector<std::string> bytes;  // id -> what it stands for
  Ids before;                      // what they put before a text
  bool strips_space = false;
};

// The words of a text among added tokens, and the texts of tokens.
std::vector<AddedToken> words_in(const std::map<std::string, AddedToken>& added);
std::vector<std::string> texts_of(const std::vector<AddedToken>& tokens);
// Adds them with the bytes that they stand for.
void add_tokens(const std::map<std::string, AddedToken>& added, Vocabulary& to);

std::unique_ptr<Tokenizer> make_tokenizer(Vocabulary vocabulary);

Vocabulary read_json_vocabulary(const std::string& path);
Vocabulary read_ranks(const std::string& path);
Vocabulary read_sentencepiece(const std::string& path);

// Ids are small: what a vocabulary of a language model has, and no more. Damaged otherwise.
int64_t checked_id(int64_t id);

}  // namespace phi3mobile
