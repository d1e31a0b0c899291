// *.tiktoken: phi-3-small's ranks, as phi3mobile/text/vocabularies.py reads them.
#include "base/error.h"
#include "text/backend.h"
#include "text/config.h"
#include "text/files.h"
#include "text/merging.h"
#include "text/pattern.h"
#include "text/tables.h"
#include "text/unicode.h"
#include "text/words.h"

#include <charconv>
#include <map>
#include <set>
#include <utility>

namespace phi3mobile {

namespace {

// cl100k's pre-tokenizer and phi-3-small's control tokens (docs: tiktoken's cl100k_base; Phi-3-small's tokenizer).
constexpr const char* kCl100k =
    R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s)";
constexpr std::pair<const char*, int64_t> kPhi3Small[] = {{"<|endoftext|>", 100257}, {"<|fim_prefix|>", 100258},
    {"<|fim_middle|>", 100259}, {"<|fim_suffix|>", 100260}, {"<|system|>", 100261}, {"<|user|>", 100262},
    {"<|assistant|>", 100263}, {"<|end|>", 100266}, {"<|endofprompt|>", 100276}};
constexpr int64_t kFirstSpecial = 100257;

// Its other ids up to 100351 are spelled too, as <|dummy_id_N|>; the model never says them.
std::map<std::string, AddedToken> phi3_small_tokens() {
  std::map<std::string, AddedToken> found;
  const auto put = [&](const std::string& text, int64_t id) {
    found[text].text = text;
    found[text].id = id;
  };
  std::set<int64_t> named;
  for (const auto& [text, id] : kPhi3Small) {
    put(text, id);
    named.insert(id);
  }
  int number = 0;
  const auto dummy = [&](int64_t id) { put("<|dummy_id_" + std::to_string(number++) + "|>", id); };
  for (const int64_t id : {100264, 100265, 100256}) dummy(id);
  for (int64_t id = 100267; id < 100352; ++id) {
    if (!named.count(id)) dummy(id);
  }
  return found;
}

class Ranks final : public WordModel {
 public:
  // Rows of base64 and a rank.
  explicit Ranks(std::string_view rows) {
    for (size_t at = 0; at < rows.size();) {
      size_t end = rows.find_first_of("\r\n", at);
      end = end == rows.npos ? rows.size() : end;
      if (end > at) read_row(rows.substr(at, end - at));
      at = end + 1;
    }
    for (int byte = 0; byte < 256; ++byte) {
      const char text = char(byte);
      byte_ids_[byte] = find(std::string_view(&text, 1));
      if (byte_ids_[byte] < 0) throw Damaged("a rank or a single byte is missing or given twice");
    }
    if (greatest_ >= kFirstSpecial) {
      const std::string allowed = "; only cl100k (ranks below " + std::to_string(kFirstSpecial) + ") is supported";
      throw InputError("rank " + std::to_string(greatest_) + allowed);
    }
  }

  int32_t greatest() const { return greatest_; }
  uint32_t size() const { return pieces_.size(); }
  std::string_view piece(uint32_t number) const { return pieces_[number]; }
  int32_t id(uint32_t number) const { return merges_[number].id; }

 protected:
  std::vector<int32_t> spell(std::string_view word) const override {
    if (const int32_t id = find(word); id >= 0) return {id};
    std::vector<Part> parts;
    for (uint32_t at = 0; at < word.size(); ++at) parts.push_back({byte_ids_[uint8_t(word[at])], at, at + 1});
    merge_parts(parts, [&](const Part& left, const Part& right) -> const Merge* {
      if (right.stop - left.start > longest_) return nullptr;
      const uint32_t number = pieces_.find(word.substr(left.start, right.stop - left.start));
      return number == Texts::kNone ? nullptr : &merges_[number];
    });
    std::vector<int32_t> ids;
    for (const Part& part : parts) ids.push_back(part.id);
    return ids;
  }

 private:
  int32_t find(std::string_view text) const {
    const uint32_t number = pieces_.find(text);
    return number == Texts::kNone ? -1 : merges_[number].id;
  }

  void read_row(std::string_view row) {
    const size_t space = row.find(' ');
    if (space == row.npos) throw Damaged("a row is not base64 and a rank");
    const std::string token = decoded(row.substr(0, space));
    int64_t rank = -1;
    const auto [end, failed] = std::from_chars(row.data() + space + 1, row.data() + row.size(), rank);
    if (failed != std::errc() || end != row.data() + row.size()) throw Damaged("a row is not base64 and a rank");
    checked_id(rank);
    if (size_t(rank) >= seen_.size()) seen_.resize(size_t(rank) + 1 + seen_.size());
    if (token.empty() || pieces_.find(token) != Texts::kNone || seen_[size_t(rank)]) {
      throw Damaged("a rank or a single byte is missing or given twice");
    }
    seen_[size_t(rank)] = true;
    pieces_.add(token);
    merges_.push_back({uint32_t(rank), int32_t(rank)});
    greatest_ = std::max(greatest_, int32_t(rank));
    longest_ = std::max(longest_, uint32_t(token.size()));
  }

  static std::string decoded(std::string_view base64) {
    static constexpr std::string_view letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t padding = 0;
    while (padding < 2 && padding < base64.size() && base64[base64.size() - 1 - padding] == '=') ++padding;
    if (base64.size() % 4 != 0) throw Damaged("a row is not base64 and a rank");
    std::string bytes;
    uint32_t bits = 0;
    int count = 0;
    for (const char c : base64.substr(0, base64.size() - padding)) {
      const size_t value = letters.find(c);
      if (value == letters.npos) throw Damaged("a row is not base64 and a rank");
      bits = bits << 6 | uint32_t(value);
      count += 6;
      if (count >= 8) bytes += char(bits >> (count -= 8));
    }
    return bytes;
  }

  Texts pieces_;
  std::vector<Merge> merges_;  // of a piece: its rank, which is its id
  std::vector<bool> seen_;     // ranks
  int32_t byte_ids_[256];
  int32_t greatest_ = -1;
  uint32_t longest_ = 0;
};

class RanksBackend final : public Backend {
 public:
  RanksBackend(std::string_view rows, const std::map<std::string, AddedToken>& added)
      : ranks_(rows), pattern_(kCl100k), words_(words_in(added), texts_of(words_in(added))) {}

  void plain(std::string_view text, bool, Ids& ids) const override {
    for (const Stretch& stretch : words_.find(text, true)) {
      if (stretch.token) {
        ids.push_back(stretch.token->id);
        continue;
      }
      std::vector<std::string_view> parts;
      for (Matches matches(pattern_, stretch.text); matches.next();) {
        parts.push_back(stretch.text.substr(matches.start, matches.stop - matches.start));
      }
      ranks_.encode(parts, ids);
    }
  }

  bool whole(std::string_view, Ids&) const override { return false; }
  const Ranks& ranks() const { return ranks_; }

 private:
  Ranks ranks_;
  Pattern pattern_;
  AddedFinder words_;
};

}  // namespace

Vocabulary read_ranks(const std::string& path) {
  std::map<std::string, AddedToken> added = phi3_small_tokens();
  const std::string rows = read_file(path);
  read_added_tokens(folder_of(path), added);
  auto backend = std::make_unique<RanksBackend>(rows, added);
  const Ranks& ranks = backend->ranks();
  Vocabulary vocabulary;
  vocabulary.bytes.resize(size_t(ranks.greatest()) + 1);
  for (uint32_t number = 0; number < ranks.size(); ++number) {
    vocabulary.bytes[size_t(ranks.id(number))] = std::string(ranks.piece(number));
  }
  add_tokens(added, vocabulary);
  vocabulary.backend = std::move(backend);
  return vocabulary;
}

}  // namespace phi3mobile
