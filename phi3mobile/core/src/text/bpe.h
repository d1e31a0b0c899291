// Byte pair encoding over the pieces of a tokenizer.json.
#pragma once

#include "base/json.h"
#include "text/merging.h"
#include "text/tables.h"
#include "text/words.h"

#include <cstdint>
#include <string_view>
#include <vector>

namespace phi3mobile {

// Pieces and their ids.
class PieceIds {
 public:
  explicit PieceIds(const Json& vocab);        // Damaged: not a vocabulary
  int32_t find(std::string_view piece) const;  // -1: there is none
  uint32_t size() const { return pieces_.size(); }
  int32_t greatest() const { return greatest_; }
  std::string_view piece(uint32_t number) const { return pieces_[number]; }
  int32_t id(uint32_t number) const { return ids_[number]; }
  const Texts& texts() const { return pieces_; }

 private:
  Texts pieces_;
  std::vector<int32_t> ids_;
  int32_t greatest_ = -1;
};

class Bpe final : public WordModel {
 public:
  // gives_bytes: words are bytes, for which byte_letters stand in the vocabulary. Damaged: not a model.
  Bpe(const Json& model, bool gives_bytes);
  const PieceIds& pieces() const { return pieces_; }

 protected:
  std::vector<int32_t> spell(std::string_view word) const override;

 private:
  void read_merges(const Json::Array& merges);
  int32_t required(std::string_view piece) const;
  std::vector<Part> characters(std::string_view word) const;
  bool has_bytes(std::string_view character) const;

  PieceIds pieces_;
  Merges merges_;
  int32_t bytes_[256];  // of <0x00> to <0xFF>, or -1
  int32_t unknown_ = -1;
  bool fuse_, whole_words_, byte_fallback_, gives_bytes_;
};

}  // namespace phi3mobile
