#include "text/bpe.h"

#include "base/utf8.h"
#include "text/backend.h"
#include "text/config.h"
#include "text/stages.h"

#include <algorithm>
#include <cstdio>
#include <utility>

namespace phi3mobile {

namespace {

std::pair<std::string_view, std::string_view> pair_in(const Json& merge) {
  if (merge.is_string()) {
    const std::string_view text = merge.string();
    const size_t space = text.find(' ');
    if (space != text.npos && text.find(' ', space + 1) == text.npos) return {text.substr(0, space), text.substr(space + 1)};
  } else if (merge.is_array() && merge.array().size() == 2 && merge.array()[0].is_string() && merge.array()[1].is_string()) {
    return {merge.array()[0].string(), merge.array()[1].string()};
  }
  throw Damaged("a merge is not of two pieces");
}

}  // namespace

PieceIds::PieceIds(const Json& vocab) {
  if (!vocab.is_object()) throw Damaged("\"vocab\" is not an object");
  for (const auto& [piece, id] : vocab.object()) {
    if (!id.is_integer()) throw Damaged("the id of " + quoted(piece) + " is not a number");
    const uint32_t number = pieces_.add(piece);
    ids_.resize(pieces_.size());
    ids_[number] = int32_t(checked_id(id.integer()));
    greatest_ = std::max(greatest_, ids_[number]);
  }
  if (greatest_ < 0) throw Damaged("the vocabulary is empty");
}

int32_t PieceIds::find(std::string_view piece) const {
  const uint32_t number = pieces_.find(piece);
  return number == Texts::kNone ? -1 : ids_[number];
}

Bpe::Bpe(const Json& model, bool gives_bytes) : pieces_(model["vocab"]), gives_bytes_(gives_bytes) {
  read_merges(list_in(model, "merges"));
  if (model["unk_token"].is_string()) unknown_ = pieces_.find(model["unk_token"].string());
  fuse_ = flag_in(model, "fuse_unk");
  whole_words_ = flag_in(model, "ignore_merges");
  byte_fallback_ = flag_in(model, "byte_fallback");
  for (int byte = 0; byte < 256; ++byte) {
    char spelled[8];
    std::snprintf(spelled, sizeof spelled, "<0x%02X>", unsigned(byte));
    bytes_[byte] = pieces_.find(spelled);
  }
}

void Bpe::read_merges(const Json::Array& merges) {
  merges_.reserve(merges.size());
  std::string both;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto [left, right] = pair_in(merges[rank]);
    both.assign(left).append(right);
    merges_.add(required(left), required(right), {uint32_t(rank), required(both)});
  }
}

int32_t Bpe::required(std::string_view piece) const {
  const int32_t id = pieces_.find(piece);
  if (id < 0) throw Damaged("a merge names " + quoted(piece) + ", which is not in the vocabulary");
  return id;
}

std::vector<int32_t> Bpe::spell(std::string_view word) const {
  const std::string spelled = gives_bytes_ ? byte_letters(word) : std::string();
  const std::string_view text = gives_bytes_ ? spelled : word;
  if (whole_words_) {
    const int32_t id = pieces_.find(text);
    if (id >= 0) return {id};
  }
  std::vector<Part> parts = characters(text);
  merge_parts(parts, [&](const Part& left, const Part& right) { return merges_.find(left.id, right.id); });
  std::vector<int32_t> ids;
  ids.reserve(parts.size());
  for (const Part& part : parts) ids.push_back(part.id);
  return ids;
}

std::vector<Part> Bpe::characters(std::string_view word) const {
  std::vector<Part> parts;
  parts.reserve(word.size());
  bool unknown = false;  // the part before stands for unknown characters
  for (size_t at = 0; at < word.size();) {
    const size_t start = at;
    next_character(word, at);
    const std::string_view character = word.substr(start, at - start);
    const int32_t id = pieces_.find(character);
    if (id >= 0) {
      parts.push_back({id, 0, 0});
      unknown = false;
    } else if (byte_fallback_ && has_bytes(character)) {
      for (const char byte : character) parts.push_back({bytes_[uint8_t(byte)], 0, 0});
      unknown = false;
    } else if (unknown_ >= 0) {
      if (!(unknown && fuse_)) parts.push_back({unknown_, 0, 0});
      unknown = true;
    }
  }
  return parts;
}

bool Bpe::has_bytes(std::string_view character) const {
  return std::all_of(character.begin(), character.end(), [&](char byte) { return bytes_[uint8_t(byte)] >= 0; });
}

}  // namespace phi3mobile
