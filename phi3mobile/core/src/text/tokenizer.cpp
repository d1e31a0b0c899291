#include "text/tokenizer.h"

#include "base/error.h"
#include "text/backend.h"
#include "text/config.h"
#include "text/files.h"
#include "text/repr.h"
#include "text/unicode.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <utility>

namespace phi3mobile {

namespace {

std::vector<std::string> texts_of(const std::map<std::string, AddedToken>& tokens) {
  std::vector<std::string> texts;
  for (const auto& [text, token] : tokens) texts.push_back(text);
  return texts;
}

// Control tokens by their text.
std::map<std::string, AddedToken> control_tokens(const std::vector<AddedToken>& added) {
  std::map<std::string, AddedToken> found;
  for (const AddedToken& token : added) found[token.text] = token;
  for (auto entry = found.begin(); entry != found.end();) {
    const bool control = entry->second.special && !without_leading_space(entry->first).empty();
    entry = control ? std::next(entry) : found.erase(entry);
  }
  return found;
}

// Neighbours of equal trust made one: a template may spell a control token across two of its segments.
std::vector<Span> merged(const std::vector<Span>& spans) {
  std::vector<Span> found;
  for (const Span& span : spans) {
    if (span.text.empty()) continue;
    if (!found.empty() && found.back().trusted == span.trusted)
      found.back().text += span.text;
    else
      found.push_back(span);
  }
  return found;
}

void check_unicode(std::string_view text) {
  if (const size_t at = invalid_utf8(text); at != text.size()) {
    throw InputError("text is not UTF-8 at byte " + std::to_string(at) + ": give valid Unicode");
  }
}

class VocabularyTokenizer final : public Tokenizer {
 public:
  explicit VocabularyTokenizer(Vocabulary vocabulary)
      : backend_(std::move(vocabulary.backend)),
        control_(control_tokens(vocabulary.added)),
        texts_(texts_of(control_)),
        any_(texts_),
        before_(std::move(vocabulary.before)),
        strips_space_(vocabulary.strips_space) {
    for (const auto& [text, token] : control_) {
      special_ids_[text] = token.id;
      text_of_[token.id] = text;
    }
    for (const std::string& text : vocabulary.bytes) {
      bytes_ += text;
      ends_.push_back(uint32_t(bytes_.size()));
    }
  }

  std::vector<int64_t> encode(std::string_view text, bool special) const override {
    check_unicode(text);
    Ids ids;
    if (special && backend_->whole(text, ids)) return ids;
    return split({{std::string(text), special}});
  }

  std::vector<int64_t> encode(const std::vector<Span>& given) const override {
    const std::vector<Span> spans = merged(given);
    std::string text;
    std::vector<std::pair<size_t, size_t>> trusted;
    for (const Span& span : spans) {
      if (span.trusted) trusted.emplace_back(text.size(), text.size() + span.text.size());
      text += span.text;
    }
    check_unicode(text);
    size_t count = 0, start, stop, number;
    for (size_t from = 0; any_.find(text, from, start, stop, number); from = stop, ++count) {
      const auto holds = [&](const auto& part) { return part.first <= start && stop <= part.second; };
      if (std::none_of(trusted.begin(), trusted.end(), holds)) return split(spans);
    }
    Ids ids;
    if (!backend_->whole(text, ids)) ids = split({{text, true}});
    // A normalizer can make control tokens of look-alikes; then there are more than the text spells.
    const auto made = std::count_if(ids.begin(), ids.end(), [&](int64_t token) { return is_control(token); });
    return size_t(made) <= count ? ids : split(spans);
  }

  std::string_view token_bytes(int64_t token) const override {
    if (token < 0 || token >= vocab_size()) return {};
    const size_t id = size_t(token);
    return std::string_view(bytes_).substr(ends_[id], ends_[id + 1] - ends_[id]);
  }

  std::string decode(const std::vector<int64_t>& ids) const override {
    std::string bytes;
    for (const int64_t token : ids) bytes += token_bytes(token);
    const bool strip = strips_space_ && !bytes.empty() && bytes[0] == ' ';
    return replaced_utf8(std::string_view(bytes).substr(strip));
  }

  bool is_control(int64_t token) const override { return text_of_.count(token) != 0; }
  const std::unordered_map<std::string, int64_t>& special_ids() const override { return special_ids_; }
  bool strips_space() const override { return strips_space_; }
  int64_t vocab_size() const override { return int64_t(ends_.size() - 1); }
  const Ids& before() const override { return before_; }

 private:
  Ids split(const std::vector<Span>& spans) const {
    Ids ids;
    std::string held;      // plain text not yet encoded
    bool swallow = false;  // inside the whitespace after an rstrip token
    const auto hold = [&](std::string_view piece) {
      if (swallow) piece = without_leading_space(piece);
      held += piece;
      swallow = swallow && piece.empty();
    };
    for (const Span& span : spans) {
      const std::string_view text = span.text;
      size_t done = 0, start, stop, number;
      while (span.trusted && any_.find(text, done, start, stop, number)) {
        const AddedToken& token = control_.at(texts_[number]);
        hold(text.substr(done, start - done));
        plain(token.lstrip ? without_trailing_space(held) : std::string_view(held), ids);
        ids.push_back(token.id);
        held.clear();
        swallow = token.rstrip;
        done = stop;
      }
      hold(text.substr(done));
    }
    plain(held, ids);
    return ids;
  }

  void plain(std::string_view text, Ids& ids) const {
    const size_t before = ids.size();
    if (!text.empty()) backend_->plain(text, before == 0, ids);
    for (size_t i = before; i < ids.size(); ++i) {
      const auto control = text_of_.find(ids[i]);
      if (control != text_of_.end() && text.find(control->second) != text.npos) {
        throw InputError("this tokenizer reads " + repr(control->second) + " as a control token even in plain text: remove it");
      }
    }
  }

  std::unique_ptr<Backend> backend_;
  std::map<std::string, AddedToken> control_;
  std::vector<std::string> texts_;
  AnyOf any_;
  std::unordered_map<std::string, int64_t> special_ids_;
  std::unordered_map<int64_t, std::string> text_of_;
  std::string bytes_;
  std::vector<uint32_t> ends_ = {0};
  Ids before_;
  bool strips_space_;
};

// The folder's *.tiktoken files.
std::vector<std::string> ranks_in(const std::string& folder) {
  std::vector<std::string> found;
  std::error_code failed;
  for (std::filesystem::directory_iterator entry(folder, failed), end; !failed && entry != end; entry.increment(failed)) {
    if (entry->path().extension() == ".tiktoken") found.push_back(entry->path().string());
  }
  return found;
}

Vocabulary read_vocabulary(const std::string& path, Vocabulary (*read)(const std::string&)) {
  try {
    return read(path);
  } catch (const InputError& error) {
    const std::string why = error.what();
    if (why.compare(0, folder_of(path).size(), folder_of(path)) == 0) throw;  // it names the file itself
    if (why.compare(0, 3, "it ") == 0) refuse_damaged(path, why);
    throw InputError(path + ": " + why);
  } catch (const Damaged& error) {
    refuse_damaged(path, error.what());
  }
}

}  // namespace

std::vector<AddedToken> words_in(const std::map<std::string, AddedToken>& added) {
  std::vector<AddedToken> found;
  for (const auto& [text, token] : added) {
    if (!token.special) found.push_back(token);
  }
  return found;
}

std::vector<std::string> texts_of(const std::vector<AddedToken>& tokens) {
  std::vector<std::string> found;
  for (const AddedToken& token : tokens) found.push_back(token.text);
  return found;
}

void add_tokens(const std::map<std::string, AddedToken>& added, Vocabulary& to) {
  for (const auto& [text, token] : added) {
    if (size_t(token.id) >= to.bytes.size()) to.bytes.resize(size_t(token.id) + 1);
    to.bytes[size_t(token.id)] = text;
    to.added.push_back(token);
  }
}

std::unique_ptr<Tokenizer> make_tokenizer(Vocabulary vocabulary) {
  return std::make_unique<VocabularyTokenizer>(std::move(vocabulary));
}

int64_t checked_id(int64_t id) {
  constexpr int64_t kMost = int64_t(1) << 22;
  if (id < 0 || id >= kMost) throw Damaged("the id " + std::to_string(id) + " is not from 0 to " + std::to_string(kMost - 1));
  return id;
}

std::unique_ptr<Tokenizer> Tokenizer::open(const std::string& folder) {
  if (is_file(folder + "/tokenizer.json")) {
    return make_tokenizer(read_vocabulary(folder + "/tokenizer.json", read_json_vocabulary));
  }
  if (is_file(folder + "/tokenizer.model")) {
    return make_tokenizer(read_vocabulary(folder + "/tokenizer.model", read_sentencepiece));
  }
  const std::vector<std::string> ranks = ranks_in(folder);
  if (ranks.size() == 1) return make_tokenizer(read_vocabulary(ranks[0], read_ranks));
  const std::string found = ranks.empty() ? "no tokenizer" : std::to_string(ranks.size()) + " *.tiktoken files";
  throw InputError(folder + ": " + found + "; put one of tokenizer.json, tokenizer.model, *.tiktoken there");
}

TextStream Tokenizer::stream(bool at_start) const { return TextStream(*this, at_start && strips_space()); }

std::string TextStream::push(int64_t token) {
  std::string_view bytes = tokenizer_->is_control(token) ? std::string_view() : tokenizer_->token_bytes(token);
  if (strip_space_ && !bytes.empty()) {
    if (bytes[0] == ' ') bytes.remove_prefix(1);
    strip_space_ = false;
  }
  return decoder_.push(bytes);
}

std::string TextStream::finish() { return decoder_.finish(); }

}  // namespace phi3mobile
