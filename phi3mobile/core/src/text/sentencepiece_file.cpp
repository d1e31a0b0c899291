#include "base/error.h"
#include "base/utf8.h"
#include "text/backend.h"
#include "text/protobuf.h"
#include "text/sentencepiece.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <unordered_map>
#include <unordered_set>

namespace phi3mobile {

namespace {

[[noreturn]] void unread(const std::string& what) {
  throw InputError(
      "the model " + what + "; the core reads BPE that changes no texts: put the tokenizer.json of this model beside it");
}

SentencePiece piece_in(std::string_view message) {
  SentencePiece piece;
  int64_t kind = SentencePiece::Normal;
  for (Fields field(message); field.next();) {
    if (field.number == 1) piece.text = field.bytes();
    if (field.number == 2) piece.score = field.real();
    if (field.number == 3) kind = field.integer();
  }
  if (piece.text.empty() || invalid_utf8(piece.text) != piece.text.size() || std::isnan(piece.score)) {
    throw Damaged("a piece has no text or no score");
  }
  if (kind < SentencePiece::Normal || kind > SentencePiece::Byte) throw Damaged("a piece of an unknown kind");
  piece.kind = SentencePiece::Kind(kind);
  if (piece.kind == SentencePiece::Unused) unread("has pieces that are not to be used");
  return piece;
}

void read_trainer(std::string_view message, SentencePieceFile& to) {
  int64_t model = 1;
  for (Fields field(message); field.next();) {
    if (field.number == 3) model = field.integer();
    if (field.number == 24 && field.integer()) unread("has its spaces behind words");
    if (field.number == 35) to.byte_fallback = field.integer() != 0;
    if (field.number == 46) to.bos = field.bytes();
  }
  if (model != 2) unread(model == 1 ? "is a unigram one" : "is no BPE one");
}

void read_normalizer(std::string_view message, SentencePieceFile& to) {
  bool collapses = true, marks = true;
  for (Fields field(message); field.next();) {
    if (field.number == 2 && !field.bytes().empty()) unread("normalizes texts");
    if (field.number == 3) to.dummy_prefix = field.integer() != 0;
    if (field.number == 4) collapses = field.integer() != 0;
    if (field.number == 5) marks = field.integer() != 0;
  }
  if (collapses) unread("removes whitespace");
  if (!marks) unread("writes no ▁ for a space");
}

// <0x00> ... <0xFF>: the pieces that stand for bytes.
std::unordered_map<std::string, int> byte_names() {
  std::unordered_map<std::string, int> names;
  for (int byte = 0; byte < 256; ++byte) {
    char spelled[8];
    std::snprintf(spelled, sizeof spelled, "<0x%02X>", unsigned(byte));
    names.emplace(spelled, byte);
  }
  return names;
}

void find_bytes(SentencePieceFile& file) {
  const auto names = byte_names();
  std::fill(std::begin(file.bytes), std::end(file.bytes), -1);
  for (size_t id = 0; id < file.pieces.size(); ++id) {
    if (file.pieces[id].kind != SentencePiece::Byte) continue;
    const auto found = names.find(file.pieces[id].text);
    if (found == names.end() || !file.byte_fallback) throw Damaged("a piece for a byte is none, or has no use");
    file.bytes[found->second] = int32_t(id);
  }
  const bool whole = std::find(std::begin(file.bytes), std::end(file.bytes), -1) == std::end(file.bytes);
  if (file.byte_fallback && !whole) throw Damaged("not every byte has a piece");
}

}  // namespace

SentencePieceFile read_sentencepiece_file(std::string_view data) {
  SentencePieceFile file;
  bool trained = false, normalized = false;
  for (Fields field(data); field.next();) {
    if (field.number == 1) file.pieces.push_back(piece_in(field.bytes()));
    if (field.number == 2) read_trainer(field.bytes(), file), trained = true;
    if (field.number == 3) read_normalizer(field.bytes(), file), normalized = true;
  }
  if (file.pieces.empty()) throw Damaged("no pieces");
  checked_id(int64_t(file.pieces.size()) - 1);
  if (!trained) unread("is a unigram one");
  if (!normalized) unread("removes whitespace");
  std::unordered_set<std::string_view> seen;
  for (size_t id = 0; id < file.pieces.size(); ++id) {
    const SentencePiece& piece = file.pieces[id];
    if (!seen.insert(piece.text).second) throw Damaged("a piece is given twice");
    if (piece.kind != SentencePiece::Unknown) continue;
    if (file.unknown >= 0) throw Damaged("two pieces are the unknown one");
    file.unknown = int32_t(id);
  }
  if (file.unknown < 0) throw Damaged("no piece is the unknown one");
  find_bytes(file);
  return file;
}

}  // namespace phi3mobile
