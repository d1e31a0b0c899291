// Text to token ids and back, as phi3mobile/text/tokenizer.py: same ids, same refusals.
#pragma once

#include "base/utf8.h"

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace phi3mobile {

// A part of a text: `trusted` where the template wrote it, so that control tokens count.
struct Span {
  std::string text;
  bool trusted;
};

class TextStream;

class Tokenizer {
 public:
  // The tokenizer of a bundle's folder: tokenizer.json, or tokenizer.model, or *.tiktoken, with tokenizer_config.json and
  // special_tokens_map.json beside it. InputError: none there, damaged, or of a kind that the core does not read.
  static std::unique_ptr<Tokenizer> open(const std::string& folder);
  virtual ~Tokenizer() = default;

  // Ids of a text in UTF-8; no bos is added. special: control-token text is read as control tokens.
  virtual std::vector<int64_t> encode(std::string_view text, bool special = true) const = 0;
  // Ids of the joined spans, control tokens being recognised in trusted ones only.
  virtual std::vector<int64_t> encode(const std::vector<Span>& spans) const = 0;
  // Bytes of a token; empty for ids without one.
  virtual std::string_view token_bytes(int64_t token) const = 0;
  // Text of a whole sequence, control tokens as their text.
  virtual std::string decode(const std::vector<int64_t>& ids) const = 0;
  virtual bool is_control(int64_t token) const = 0;
  virtual const std::unordered_map<std::string, int64_t>& special_ids() const = 0;
  virtual bool strips_space() const = 0;   // decoding drops one leading space, which encoding put there
  virtual int64_t vocab_size() const = 0;  // 1 + the greatest id
  // Ids that the vocabulary's files put before a text; `encode` does not.
  virtual const std::vector<int64_t>& before() const = 0;

  // Incremental decoding without control tokens. at_start: the text starts here; else it continues one.
  TextStream stream(bool at_start) const;
};

class TextStream {
 public:
  TextStream(const Tokenizer& tokenizer, bool strip_space) : tokenizer_(&tokenizer), strip_space_(strip_space) {}
  std::string push(int64_t token);  // the text that it completes
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  bool strip_space_;
  Utf8Decoder decoder_;
};

}  // namespace phi3mobile
