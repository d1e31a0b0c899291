// tokenizer.model alone, as phi3mobile/text/vocabularies.py reads it by the library sentencepiece: BPE by the pieces' scores.
#include "text/sentencepiece.h"

#include "base/error.h"
#include "base/files.h"
#include "base/utf8.h"
#include "text/backend.h"
#include "text/config.h"
#include "text/files.h"
#include "text/marks.h"
#include "text/merging.h"
#include "text/words.h"

#include <algorithm>
#include <functional>
#include <map>
#include <set>
#include <utility>

namespace phi3mobile {

namespace {

std::vector<std::string> user_defined(const SentencePieceFile& file) {
  std::vector<std::string> found;
  for (const SentencePiece& piece : file.pieces) {
    if (piece.kind == SentencePiece::UserDefined) found.push_back(piece.text);
  }
  return found;
}

class SentencePieces final : public WordModel {
 public:
  explicit SentencePieces(const SentencePieceFile& file)
      : unknown_(file.unknown), byte_fallback_(file.byte_fallback), whole_(user_defined(file)) {
    std::copy(std::begin(file.bytes), std::end(file.bytes), bytes_);
    std::set<float, std::greater<>> scores;
    for (const SentencePiece& piece : file.pieces) scores.insert(piece.score);
    std::map<float, uint32_t> ranks;
    for (const float score : scores) ranks.emplace(score, uint32_t(ranks.size()));
    for (size_t id = 0; id < file.pieces.size(); ++id) {
      const SentencePiece& piece = file.pieces[id];
      if (piece.kind != SentencePiece::Normal && piece.kind != SentencePiece::UserDefined) continue;
      pieces_.add(piece.text);
      merges_.push_back({ranks.at(piece.score), int32_t(id)});
    }
    cuts_ = may_cut_at_marks(pieces_);
  }

  // The words of a text with ▁ for its spaces.
  std::vector<std::string_view> words(std::string_view text) const {
    std::vector<std::string_view> found;
    if (cuts_)
      cut_at_marks(text, found);
    else
      found.push_back(text);
    return found;
  }

  bool has(std::string_view piece) const { return find(piece) != nullptr; }
  bool byte_fallback() const { return byte_fallback_; }

 protected:
  std::vector<int32_t> spell(std::string_view word) const override {
    std::vector<int32_t> ids;
    size_t done = 0, start, stop, number;
    while (whole_.find(word, done, start, stop, number)) {  // user-defined: no merge goes across it
      between(word.substr(done, start - done), ids);
      ids.push_back(find(word.substr(start, stop - start))->id);
      done = stop;
    }
    between(word.substr(done), ids);
    return ids;
  }

 private:
  const Merge* find(std::string_view text) const {
    const uint32_t number = pieces_.find(text);
    return number == Texts::kNone ? nullptr : &merges_[number];
  }

  void between(std::string_view text, std::vector<int32_t>& ids) const {
    std::vector<Part> parts;
    for (size_t at = 0; at < text.size();) {
      const size_t start = at;
      next_character(text, at);
      const Merge* found = find(text.substr(start, at - start));
      parts.push_back({found ? found->id : unknown_, uint32_t(start), uint32_t(at)});
    }
    merge_parts(
        parts, [&](const Part& left, const Part& right) { return find(text.substr(left.start, right.stop - left.start)); });
    for (const Part& part : parts) {
      if (part.id != unknown_) {
        ids.push_back(part.id);
      } else if (byte_fallback_) {
        for (const char byte : text.substr(part.start, part.stop - part.start)) ids.push_back(bytes_[uint8_t(byte)]);
      } else if (ids.empty() || ids.back() != unknown_) {
        ids.push_back(unknown_);
      }
    }
  }

  Texts pieces_;
  std::vector<Merge> merges_;  // of a piece: the rank of its score, and its id
  int32_t bytes_[256];
  int32_t unknown_;
  bool byte_fallback_, cuts_;
  AnyOf whole_;
};

class SentencePieceBackend final : public Backend {
 public:
  SentencePieceBackend(const SentencePieceFile& file, std::vector<AddedToken> words)
      : model_(file), dummy_prefix_(file.dummy_prefix), words_(words, texts_of(words)) {}

  void plain(std::string_view text, bool, Ids& ids) const override {
    for (const Stretch& stretch : words_.find(text, true)) {
      if (stretch.token) {
        ids.push_back(stretch.token->id);
      } else if (!stretch.text.empty()) {
        const std::string marked = with_marks(stretch.text);
        model_.encode(model_.words(marked), ids);
      }
    }
  }

  bool whole(std::string_view, Ids&) const override { return false; }

  // Whether a text's first piece shows the space that was put before it.
  bool shows_prefix() const {
    return dummy_prefix_ && (!model_.byte_fallback() || model_.has(kMark) || model_.has(std::string(kMark) + "a"));
  }

 private:
  std::string with_marks(std::string_view text) const {
    std::string marked = dummy_prefix_ ? std::string(kMark) : std::string();
    for (const char c : text) {
      if (c == ' ')
        marked += kMark;
      else
        marked += c;
    }
    return marked;
  }

  SentencePieces model_;
  bool dummy_prefix_;
  AddedFinder words_;
};

}  // namespace

Vocabulary read_sentencepiece(const std::string& path) {
  const SentencePieceFile file = read_sentencepiece_file(read_file(path));
  Vocabulary vocabulary;
  std::map<std::string, AddedToken> added;
  std::map<std::string_view, int64_t> ids;
  for (size_t id = 0; id < file.pieces.size(); ++id) {
    const SentencePiece& piece = file.pieces[id];
    vocabulary.bytes.push_back(sentencepiece_bytes(piece.text));
    if (piece.kind != SentencePiece::Unknown) ids[piece.text] = int64_t(id);
    if (piece.kind != SentencePiece::Unknown && piece.kind != SentencePiece::Control) continue;
    added[piece.text].text = piece.text;
    added[piece.text].id = int64_t(id);
  }
  Ids before;
  if (const auto bos = added.find(file.bos); bos != added.end() && bos->second.id != file.unknown) before = {bos->second.id};
  read_added_tokens(folder_of(path), added);
  auto backend = std::make_unique<SentencePieceBackend>(file, words_in(added));
  vocabulary.strips_space = backend->shows_prefix();
  add_tokens(added, vocabulary);
  vocabulary.before = named_before(folder_of(path), std::move(before), [&](const std::string& text) {
    const auto found = ids.find(text);
    return found == ids.end() ? int64_t(-1) : found->second;
  });
  vocabulary.backend = std::move(backend);
  return vocabulary;
}

}  // namespace phi3mobile
