// tokenizer.json with a BPE model, as phi3mobile/text/pure_tokenizer.py and vocabularies.py read it.
#include "base/error.h"
#include "base/json.h"
#include "base/utf8.h"
#include "text/added.h"
#include "text/backend.h"
#include "text/bpe.h"
#include "text/config.h"
#include "text/files.h"
#include "text/marks.h"
#include "text/stages.h"
#include "text/unicode.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

namespace phi3mobile {

namespace {

class JsonBackend final : public Backend {
 public:
  JsonBackend(const Json& config, const std::vector<AddedToken>& added)
      : normalize_(config["normalizer"]),
        split_(config["pre_tokenizer"]),
        bpe_(config["model"], split_.gives_bytes()),
        cuts_(!split_.gives_bytes() && may_cut_at_marks(bpe_.pieces().texts())),
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
      throw InputError("the tokenizer marks word parts (" + std::string(name) +
                       "), which the core does not read: use the Python "
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
      throw Damaged(
          "added token " + token.text + " has id " + std::to_string(token.id) + ", which leaves a gap in the vocabulary");
    }
    next = std::max(next, token.id + 1);
  }
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

// Ids that the post-processor puts before a text.
Ids framed(const Json& processor) {
  Ids before;
  Json::Array steps{processor};
  if (processor.has("processors")) steps = list_in(processor, "processors");
  for (const Json& step : steps) {
    const std::string kind = step["type"].is_string() ? step["type"].string() : "";
    if (kind == "TemplateProcessing") {
      before.clear();
      for (const Json& part : list_in(step, "single")) {
        if (part.has("Sequence")) break;
        const Json& token = step["special_tokens"][text_in(part["SpecialToken"], "id")];
        for (const Json& id : list_in(token, "ids")) {
          if (!id.is_integer()) throw Damaged("an id of the post-processor is no number");
          before.push_back(checked_id(id.integer()));
        }
      }
    } else if (kind == "BertProcessing" || kind == "RobertaProcessing") {
      const Json::Array& cls = list_in(step, "cls");
      if (cls.size() != 2 || !cls[1].is_integer()) throw Damaged("the post-processor's cls is no token");
      before = {checked_id(cls[1].integer())};
    }
  }
  return before;
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
  vocabulary.before = named_before(folder, framed(config["post_processor"]), [&](const std::string& text) {
    for (const AddedToken& token : vocabulary.added) {
      if (token.text == text) return token.id;
    }
    return int64_t(pieces.find(text));
  });
  vocabulary.backend = std::move(backend);
  return vocabulary;
}

}  // namespace phi3mobile
