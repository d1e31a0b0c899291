// The normalizers and pre-tokenizers of tokenizer.json.
#pragma once

#include "base/json.h"

#include <deque>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace phi3mobile {

// Byte-level BPE's stand-ins for bytes, as UTF-8: printable Latin-1 stands for itself, the rest start at U+0100.
std::string byte_letters(std::string_view bytes);
// The bytes that these letters stand for; the text as it is, if any stands for none.
std::string bytes_of_letters(std::string_view letters);

class Normalizer {
 public:
  // InputError: a kind that the core does not read. Damaged: no normalizer.
  explicit Normalizer(const Json& config);
  bool changes_nothing() const { return steps_.empty(); }
  std::string operator()(std::string_view text) const;

 private:
  void add(const Json& config);

  std::vector<std::function<std::string(std::string_view)>> steps_;
};

// Pieces of a text, which lies elsewhere or in `owned`.
struct Pieces {
  std::vector<std::string_view> parts;
  std::deque<std::string> owned;
};

class PreTokenizer {
 public:
  // InputError: a kind that the core does not read. Damaged: no pre-tokenizer.
  explicit PreTokenizer(const Json& config);
  // Cuts the parts on; first: the first one starts the whole text.
  void operator()(Pieces& pieces, bool first) const;
  // The words are bytes for which byte_letters stand in the vocabulary: the last stage, which is left to whoever looks them up.
  bool gives_bytes() const { return gives_bytes_; }

 private:
  void add(const Json& config, bool last);

  std::vector<std::function<void(Pieces&, bool)>> steps_;
  bool gives_bytes_ = false;
};

}  // namespace phi3mobile
