// sentencepiece's own file, tokenizer.model: what it says of pieces and of texts.
#pragma once

#include "text/tables.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace phi3mobile {

struct SentencePiece {
  enum Kind { Normal = 1, Unknown = 2, Control = 3, UserDefined = 4, Unused = 5, Byte = 6 } kind = Normal;
  std::string text;
  float score = 0;
};

struct SentencePieceFile {
  std::vector<SentencePiece> pieces;
  std::string bos = "<s>";
  bool byte_fallback = false, dummy_prefix = true;
  int32_t unknown = -1;  // id
  int32_t bytes[256];    // ids, where byte_fallback
};

// InputError: a model, or a way to change texts, that the core does not read. Damaged: no such file.
SentencePieceFile read_sentencepiece_file(std::string_view data);

}  // namespace phi3mobile
