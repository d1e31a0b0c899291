#include "text/stages.h"

#include "base/error.h"
#include "base/utf8.h"
#include "text/config.h"
#include "text/pattern.h"
#include "text/unicode.h"

#include <array>
#include <memory>
#include <utility>

namespace phi3mobile {

namespace {

constexpr const char* kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

struct Letters {
  std::array<std::string, 256> of_byte;
  std::array<int, 0x180> byte_of;  // code of a letter -> byte, or -1
};

const Letters& letters() {
  static const Letters found = [] {
    Letters made;
    made.byte_of.fill(-1);
    uint32_t next = 0x100;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte < 0x7F) || (byte >= 0xA1 && byte != 0xAD);
      const uint32_t code = printable ? byte : next++;
      append_utf8(made.of_byte[byte], code);
      made.byte_of[code] = int(byte);
    }
    return made;
  }();
  return found;
}

[[noreturn]] void unread(const std::string& what) {
  throw InputError("the core does not read the tokenizer's " + what + ": use the Python session, or another tokenizer");
}

Pattern pattern_in(const Json& config) {
  const Json& pattern = config["pattern"];
  return pattern["Regex"].is_string() ? Pattern(pattern["Regex"].string()) : Pattern::literal(text_in(pattern, "String"));
}

std::string replaced(const Pattern& pattern, std::string_view text, std::string_view content) {
  std::string made;
  size_t done = 0;
  for (Matches matches(pattern, text); matches.next(); done = matches.stop) {
    made += text.substr(done, matches.start - done);
    made += content;
  }
  made += text.substr(done);
  return made;
}

std::string replaced(std::string_view part, std::string_view text, std::string_view content) {
  std::string made;
  made.reserve(text.size() + text.size() / 2);
  size_t done = 0;
  for (size_t at; (at = text.find(part, done)) != text.npos; done = at + part.size()) {
    made.append(text, done, at - done);
    made += content;
  }
  made.append(text, done);
  return made;
}

enum class Behavior { Isolated, Removed, Contiguous, MergedWithPrevious, MergedWithNext };

Behavior behavior_in(const Json& config) {
  static constexpr std::pair<const char*, Behavior> known[] = {{"Isolated", Behavior::Isolated}, {"Removed", Behavior::Removed},
      {"Contiguous", Behavior::Contiguous}, {"MergedWithPrevious", Behavior::MergedWithPrevious},
      {"MergedWithNext", Behavior::MergedWithNext}};
  const std::string& name = text_in(config, "behavior");
  for (const auto& [spelled, behavior] : known) {
    if (name == spelled) return behavior;
  }
  unread("splitting with behavior " + quoted(name));
}

struct Cut {
  size_t start, stop;
  bool delimiter;
};

// Whether a cut stays with the one before it.
bool joins(const Cut& before, const Cut& cut, Behavior behavior) {
  switch (behavior) {
    case Behavior::Contiguous:
      return before.delimiter == cut.delimiter;
    case Behavior::MergedWithPrevious:
      return cut.delimiter && !before.delimiter;
    case Behavior::MergedWithNext:
      return before.delimiter && !cut.delimiter;
    default:
      return false;
  }
}

// The text cut at the matches of the pattern, which stay as `behavior` says.
void cut(const Pattern& pattern, std::string_view text, Behavior behavior, bool invert, std::vector<std::string_view>& to) {
  Cut held = {0, 0, false};  // not yet in `to`
  const auto put = [&](size_t start, size_t stop, bool delimiter) {
    const Cut next = {start, stop, delimiter};
    if (held.stop > held.start && joins(held, next, behavior)) {
      held = {held.start, stop, delimiter};
      return;
    }
    if (held.stop > held.start) to.push_back(text.substr(held.start, held.stop - held.start));
    held = behavior == Behavior::Removed && delimiter ? Cut{0, 0, false} : next;
  };
  size_t done = 0;
  for (Matches matches(pattern, text); matches.next(); done = std::max(done, matches.stop)) {
    if (matches.start > done) put(done, matches.start, invert);
    if (matches.stop > matches.start) put(matches.start, matches.stop, !invert);
  }
  if (done < text.size()) put(done, text.size(), invert);
  if (held.stop > held.start) to.push_back(text.substr(held.start, held.stop - held.start));
}

std::function<void(Pieces&, bool)> splitter(Pattern pattern, Behavior behavior, bool invert) {
  const auto shared = std::make_shared<const Pattern>(std::move(pattern));
  return [shared, behavior, invert](Pieces& pieces, bool) {
    std::vector<std::string_view> parts;
    parts.reserve(std::max<size_t>(pieces.parts.size(), 16));
    for (const std::string_view part : pieces.parts) cut(*shared, part, behavior, invert, parts);
    pieces.parts = std::move(parts);
  };
}

void prefix_spaces(Pieces& pieces, bool) {
  for (std::string_view& part : pieces.parts) {
    if (!part.empty() && part[0] == ' ') continue;
    pieces.owned.push_back(" " + std::string(part));
    part = pieces.owned.back();
  }
}

void spell_bytes(Pieces& pieces, bool) {
  for (std::string_view& part : pieces.parts) {
    pieces.owned.push_back(byte_letters(part));
    part = pieces.owned.back();
  }
}

std::function<void(Pieces&, bool)> marker(const Json& config) {
  const std::string mark = text_in(config, "replacement");
  const Json& given = config["prepend_scheme"];
  const std::string scheme = given.is_string() ? given.string() : "always";
  return [mark, always = scheme == "always", at_first = scheme == "first"](Pieces& pieces, bool first) {
    for (size_t i = 0; i < pieces.parts.size(); ++i) {
      std::string made = replaced(std::string_view(" "), pieces.parts[i], mark);
      const bool marked = made.compare(0, mark.size(), mark) == 0;
      if (!marked && (always || (at_first && first && i == 0))) made = mark + made;
      pieces.owned.push_back(std::move(made));
      pieces.parts[i] = pieces.owned.back();
    }
  };
}

}  // namespace

std::string byte_letters(std::string_view bytes) {
  const Letters& known = letters();
  std::string made;
  made.reserve(2 * bytes.size());
  for (const char byte : bytes) made += known.of_byte[uint8_t(byte)];
  return made;
}

std::string bytes_of_letters(std::string_view text) {
  const Letters& known = letters();
  std::string made;
  for (size_t at = 0; at < text.size();) {
    const uint32_t code = next_character(text, at);
    if (code >= known.byte_of.size() || known.byte_of[code] < 0) return std::string(text);
    made += char(known.byte_of[code]);
  }
  return made;
}

Normalizer::Normalizer(const Json& config) { add(config); }

void Normalizer::add(const Json& config) {
  if (config.is_null()) return;
  const std::string& kind = text_in(config, "type");
  static constexpr std::pair<const char*, Form> forms[] = {
      {"NFC", Form::NFC}, {"NFD", Form::NFD}, {"NFKC", Form::NFKC}, {"NFKD", Form::NFKD}};
  for (const auto& [name, form] : forms) {
    if (kind == name) return steps_.push_back([form = form](std::string_view text) { return normalized(text, form); });
  }
  if (kind == "Sequence") {
    for (const Json& step : list_in(config, "normalizers")) {
      if (step["type"].is_string() && step["type"].string() == "Sequence") unread("normalizer of sequences in a sequence");
      add(step);
    }
  } else if (kind == "Prepend") {
    steps_.push_back([front = text_in(config, "prepend")](
                         std::string_view text) { return text.empty() ? std::string() : front + std::string(text); });
  } else if (kind == "Replace") {
    const std::string content = text_in(config, "content");
    const Json& part = config["pattern"]["String"];
    if (part.is_string() && !part.string().empty() && !config["pattern"].has("Regex")) {
      steps_.push_back([part = part.string(), content](std::string_view text) { return replaced(part, text, content); });
    } else {
      const auto pattern = std::make_shared<const Pattern>(pattern_in(config));
      steps_.push_back([pattern, content](std::string_view text) { return replaced(*pattern, text, content); });
    }
  } else if (kind == "Lowercase") {
    steps_.push_back(lowered);
  } else {
    unread("normalizer " + quoted(kind));
  }
}

std::string Normalizer::operator()(std::string_view text) const {
  std::string made(text);
  for (const auto& step : steps_) made = step(made);
  return made;
}

PreTokenizer::PreTokenizer(const Json& config) { add(config, true); }

void PreTokenizer::add(const Json& config, bool last) {
  if (config.is_null()) return;
  const std::string& kind = text_in(config, "type");
  if (kind == "Sequence") {
    const Json::Array& steps = list_in(config, "pretokenizers");
    for (const Json& step : steps) {
      if (step["type"].is_string() && step["type"].string() == "Sequence") unread("pre-tokenizer of sequences in a sequence");
      add(step, last && &step == &steps.back());
    }
  } else if (kind == "Split") {
    const Behavior behavior = behavior_in(config);
    steps_.push_back(splitter(pattern_in(config), behavior, flag_in(config, "invert")));
  } else if (kind == "Digits") {
    const bool each = flag_in(config, "individual_digits");
    steps_.push_back(splitter(Pattern(R"(\p{N})"), each ? Behavior::Isolated : Behavior::Contiguous, false));
  } else if (kind == "ByteLevel") {
    if (flag_in(config, "add_prefix_space")) steps_.push_back(prefix_spaces);
    if (flag_in(config, "use_regex", true)) steps_.push_back(splitter(Pattern(kGpt2), Behavior::Isolated, false));
    if (last)
      gives_bytes_ = true;
    else
      steps_.push_back(spell_bytes);
  } else if (kind == "Metaspace") {
    steps_.push_back(marker(config));
    if (flag_in(config, "split", true)) {
      steps_.push_back(splitter(Pattern::literal(text_in(config, "replacement")), Behavior::MergedWithNext, false));
    }
  } else {
    unread("pre-tokenizer " + quoted(kind));
  }
}

void PreTokenizer::operator()(Pieces& pieces, bool first) const {
  for (const auto& step : steps_) step(pieces, first);
}

}  // namespace phi3mobile
