// tokenizer.json with a BPE model, as phi3mobile/text/pure_tokenizer.py and vocabularies.py read it.
#include "base/error.h"
#include "base/json.h"
#include "base/utf8.h"
#include "text/added.h"
#include "text/backend.h"
#include "text/config.h"
#include "text/files.h"
#include "text/merging.h"
#include "text/stages.h"
#include "text/tables.h"
#include "text/unicode.h"
#include "text/words.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <set>
#include <utility>

namespace phi3mobile {

namespace {

constexpr std::string_view kMark = "\xE2\x96\x81";  // ▁

// Pieces and their ids.
class PieceIds {
 public:
  explicit PieceIds(const Json& vocab) {
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

  // -1: there is none.
  int32_t find(std::string_view piece) const {
    const uint32_t number = pieces_.find(piece);
    return number == Texts::kNone ? -1 : ids_[number];
  }
  int32_t get(std::string_view piece) const {
    const int32_t id = find(piece);
    if (id < 0) throw Damaged("a merge names " + quoted(piece) + ", which is not in the vocabulary");
    return id;
  }
  uint32_t size() const { return pieces_.size(); }
  int32_t greatest() const { return greatest_; }
  std::string_view piece(uint32_t number) const { return pieces_[number]; }
  int32_t id(uint32_t number) const { return ids_[number]; }

 private:
  Texts pieces_;
  std::vector<int32_t> ids_;
  int32_t greatest_ = -1;
};

class Bpe final : public WordModel {
 public:
  Bpe(const Json& model, bool gives_bytes) : pieces_(model["vocab"]), gives_bytes_(gives_bytes) {
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

  const PieceIds& pieces() const { return pieces_; }

 protected:
  std::vector<int32_t> spell(std::string_view word) const override {
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

 private:
  void read_merges(const Json::Array& merges) {
    merges_.reserve(merges.size());
    std::string both;
    for (size_t rank = 0; rank < merges.size(); ++rank) {
      const auto [left, right] = pair_in(merges[rank]);
      both.assign(left).append(right);
      merges_.add(pieces_.get(left), pieces_.get(right), {uint32_t(rank), pieces_.get(both)});
    }
  }

  static std::pair<std::string_view, std::string_view> pair_in(const Json& merge) {
    if (merge.is_string()) {
      const std::string_view text = merge.string();
      const size_t space = text.find(' ');
      if (space != text.npos && text.find(' ', space + 1) == text.npos) return {text.substr(0, space), text.substr(space + 1)};
    } else if (merge.is_array() && merge.array().size() == 2 && merge.array()[0].is_string() && merge.array()[1].is_string()) {
      return {merge.array()[0].string(), merge.array()[1].string()};
    }
    throw Damaged("a merge is not of two pieces");
  }

  std::vector<Part> characters(std::string_view word) const {
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

  bool has_bytes(std::string_view character) const {
    return std::all_of(character.begin(), character.end(), [&](char byte) { return bytes_[uint8_t(byte)] >= 0; });
  }

  PieceIds pieces_;
  Merges merges_;
  int32_t bytes_[256];
  int32_t unknown_ = -1;
  bool fuse_, whole_words_, byte_fallback_, gives_bytes_;
};

// Whether ▁ is a piece and none has ▁ after another character: then no merge crosses such a place, and Llama's texts, which
// its vocabulary sees as one word, can be cut there.
bool may_cut_at_marks(const PieceIds& pieces) {
  if (pieces.find(kMark) < 0) return false;
  for (uint32_t number = 0; number < pieces.size(); ++number) {
    const std::string_view piece = pieces.piece(number);
    for (size_t at = piece.find(kMark); at != piece.npos; at = piece.find(kMark, at + kMark.size())) {
      if (at > 0 && (at < kMark.size() || piece.substr(at - kMark.size(), kMark.size()) != kMark)) return false;
    }
  }
  return true;
}

// Words, each ▁s and what follows them up to the next ▁.
void cut_at_marks(std::string_view text, std::vector<std::string_view>& words) {
  size_t start = 0;
  for (size_t at = text.find(kMark); at != text.npos; at = text.find(kMark, at + kMark.size())) {
    const std::string_view before = text.substr(start, at - start);
    if (before.empty() || (before.size() >= kMark.size() && before.substr(before.size() - kMark.size()) == kMark)) continue;
    words.push_back(before);
    start = at;
  }
  if (start < text.size()) words.push_back(text.substr(start));
}

class JsonBackend final : public Backend {
 public:
  JsonBackend(const Json& config, const std::vector<AddedToken>& added)
      : normalize_(config["normalizer"]),
        split_(config["pre_tokenizer"]),
        bpe_(config["model"], split_.gives_bytes()),
        cuts_(!split_.gives_bytes() && may_cut_at_marks(bpe_.pieces())),
        all_(finders(added)),
        words_(finders(without_special(added))) {}

  void plain(std::string_view text, bool first, Ids& ids) const override { found(text, words_, first, ids); }

  bool whole(std::string_view text, Ids& ids) const override {
    found(text, all_, true, ids);
    return true;
  }

  const PieceIds& pieces() const { return bpe_.pieces(); }
  std::string normalize(std::string_view text) const { return normalize_(text); }

 private:
  struct Finders {
    AddedFinder raw, late;  // in the text as it is, and normalized
  };

  static std::vector<AddedToken> without_special(std::vector<AddedToken> tokens) {
    tokens.erase(std::remove_if(tokens.begin(), tokens.end(), [](const AddedToken& t) { return t.special; }), tokens.end());
    return tokens;
  }

  Finders finders(const std::vector<AddedToken>& tokens) const {
    std::vector<AddedToken> kinds[2];
    std::vector<std::string> texts[2];
    for (const AddedToken& token : tokens) {
      kinds[token.normalized].push_back(token);
      texts[token.normalized].push_back(token.normalized ? normalize_(token.text) : token.text);
    }
    return {AddedFinder(std::move(kinds[0]), texts[0]), AddedFinder(std::move(kinds[1]), texts[1])};
  }

  void found(std::string_view text, const Finders& finders, bool start, Ids& ids) const {
    for (const Stretch& raw : finders.raw.find(text)) {
      if (raw.token) {
        ids.push_back(raw.token->id);
        start = false;
        continue;
      }
      const std::string changed = normalize_.changes_nothing() ? std::string() : normalize_(raw.text);
      for (const Stretch& late : finders.late.find(normalize_.changes_nothing() ? raw.text : std::string_view(changed))) {
        if (late.token)
          ids.push_back(late.token->id);
        else
          between(late.text, start, ids);
        start = false;
      }
      start = false;
    }
  }

  void between(std::string_view text, bool first, Ids& ids) const {
    if (text.empty()) return;
    Pieces pieces;
    pieces.parts.push_back(text);
    split_(pieces, first);
    if (cuts_) {
      std::vector<std::string_view> words;
      for (const std::string_view part : pieces.parts) cut_at_marks(part, words);
      pieces.parts = std::move(words);
    }
    bpe_.encode(pieces.parts, ids);
  }

  Normalizer normalize_;
  PreTokenizer split_;
  Bpe bpe_;
  bool cuts_;
  Finders all_, words_;
};

void refuse_other_models(const Json& model) {
  const Json& type = model["type"];
  const std::string todo = "the core reads BPE only: use the Python session, or another tokenizer";
  const bool is_bpe = type.is_null() ? !model["vocab"].is_array() : type.is_string() && type.string() == "BPE";
  if (model.is_object() && !is_bpe) {
    throw InputError("the tokenizer's model is " + (type.is_null() ? std::string("not named") : type.dump()) + "; " + todo);
  }
  const Json& dropout = model["dropout"];
  if (dropout.is_number() && dropout.number() != 0) throw InputError("the tokenizer drops merges by chance (dropout); " + todo);
  for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (model[name].is_string() && !model[name].string().empty()) {
      throw InputError("the tokenizer marks word parts (" + std::string(name) + "), which the core does not read: use the Python "
                       "session, or another tokenizer");
    }
  }
}

// Those of the file and those that its neighbours name; the named ones are control tokens, mere whitespace never is.
std::vector<AddedToken> added_tokens(const Json& config, const std::set<std::string>& named) {
  std::vector<AddedToken> tokens;
  std::set<std::string> known;
  static const Json::Array none;
  for (const Json& entry : config["added_tokens"].is_null() ? none : list_in(config, "added_tokens")) {
    AddedToken token;
    token.text = text_in(entry, "content");
    token.id = checked_id(integer_in(entry, "id"));
    for (const char* flag : {"lstrip", "rstrip", "normalized"}) {
      if (!entry[flag].is_bool()) throw Damaged("an added token lacks \"" + std::string(flag) + "\"");
    }
    token.lstrip = flag_in(entry, "lstrip");
    token.rstrip = flag_in(entry, "rstrip");
    token.normalized = flag_in(entry, "normalized");
    token.single_word = flag_in(entry, "single_word");
    token.special = !without_leading_space(token.text).empty() && (flag_in(entry, "special") || named.count(token.text));
    known.insert(token.text);
    tokens.push_back(std::move(token));
  }
  const Json& vocab = config["model"]["vocab"];
  if (vocab.is_object() && !named.empty()) {
    std::map<std::string, int64_t> more;
    for (const auto& [piece, id] : vocab.object()) {
      if (id.is_integer() && named.count(piece) && !known.count(piece)) more[piece] = checked_id(id.integer());
    }
    for (const auto& [text, id] : more) {
      AddedToken token;
      token.text = text;
      token.id = id;
      tokens.push_back(std::move(token));
    }
  }
  std::stable_sort(tokens.begin(), tokens.end(), [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  return tokens;
}

// `tokenizers` numbers what follows a gap anew: such a file means other ids to it than it says.
void refuse_gaps(const std::vector<AddedToken>& tokens, const PieceIds& pieces) {
  int64_t next = pieces.size();
  for (const AddedToken& token : tokens) {
    const int32_t piece = pieces.find(token.text);
    if (token.id != (piece >= 0 ? piece : next) && !token.text.empty()) {
      throw Damaged("added token " + token.text + " has id " + std::to_string(token.id) + ", which leaves a gap in the vocabulary");
    }
    next = std::max(next, token.id + 1);
  }
}

// Replaces ▁ by spaces, as sentencepiece shows its pieces.
std::string with_spaces(std::string_view piece) {
  std::string text;
  size_t done = 0;
  for (size_t at; (at = piece.find(kMark, done)) != piece.npos; done = at + kMark.size()) {
    text.append(piece, done, at - done);
    text += ' ';
  }
  return text.append(piece, done);
}

int hexadecimal(char digit) {
  if (digit >= '0' && digit <= '9') return digit - '0';
  const char low = char(digit | 32);
  return low >= 'a' && low <= 'f' ? low - 'a' + 10 : -1;
}

std::string sentencepiece_bytes(std::string_view piece) {
  if (piece.size() == 6 && piece.substr(0, 3) == "<0x" && piece[5] == '>') {
    const int high = hexadecimal(piece[3]), low = hexadecimal(piece[4]);
    if (high >= 0 && low >= 0) return std::string(1, char(high << 4 | low));
  }
  return with_spaces(piece);
}

struct Decoding {
  bool byte_level = false, strips_space = false;
};

Decoding decoding_in(const Json& config) {
  const Json& decoder = config["decoder"];
  std::vector<const Json*> steps;
  if (decoder.has("decoders")) {
    for (const Json& step : list_in(decoder, "decoders")) steps.push_back(&step);
  } else if (!decoder.is_null()) {
    steps.push_back(&decoder);
  }
  Decoding found;
  bool known = false;
  std::string names;
  for (const Json* step : steps) {
    if (step->is_null()) continue;
    const std::string& kind = text_in(*step, "type");
    names += (names.empty() ? "" : ", ") + kind;
    found.byte_level = found.byte_level || kind == "ByteLevel";
    known = known || kind == "ByteLevel" || kind == "ByteFallback" || kind == "Metaspace";
    const Json &content = (*step)["content"], &start = (*step)["start"], &scheme = (*step)["prepend_scheme"];
    const bool one_space = content.is_string() && content.string() == " " && start.is_integer() && start.integer() == 1;
    if (kind == "Strip" && one_space) found.strips_space = true;
    if (kind == "Metaspace" && scheme.is_string() && scheme.string() != "never") found.strips_space = true;
  }
  if (!known) {
    const std::string said = names.empty() ? "none" : names;
    throw InputError("decoder " + said + " is not supported; allowed: ByteLevel, ByteFallback, Metaspace");
  }
  return found;
}

}  // namespace

Vocabulary read_json_vocabulary(const std::string& path) {
  const std::string folder = folder_of(path);
  const std::set<std::string> named = named_tokens(folder);
  const Json config = Json::parse(read_file(path), "it");
  refuse_other_models(config["model"]);
  Vocabulary vocabulary;
  vocabulary.added = added_tokens(config, named);
  auto backend = std::make_unique<JsonBackend>(config, vocabulary.added);
  const PieceIds& pieces = backend->pieces();
  refuse_gaps(vocabulary.added, pieces);
  const Decoding decoding = decoding_in(config);
  vocabulary.strips_space = decoding.strips_space;
  vocabulary.bytes.resize(size_t(pieces.greatest()) + 1);
  for (uint32_t number = 0; number < pieces.size(); ++number) {
    const std::string_view piece = pieces.piece(number);
    vocabulary.bytes[size_t(pieces.id(number))] = decoding.byte_level ? bytes_of_letters(piece) : sentencepiece_bytes(piece);
  }
  for (const AddedToken& token : vocabulary.added) {
    const size_t id = size_t(token.id);
    if (id >= vocabulary.bytes.size()) vocabulary.bytes.resize(id + 1);
    const std::string shown = token.normalized ? backend->normalize(token.text) : std::string();
    // Where the normalizer writes ▁ for a space, a normalized token may begin with one.
    vocabulary.bytes[id] = shown.find(kMark) != shown.npos ? with_spaces(shown) : token.text;
  }
  vocabulary.backend = std::move(backend);
  return vocabulary;
}

}  // namespace phi3mobile
