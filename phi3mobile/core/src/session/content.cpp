#include "session/content.h"

#include "base/error.h"
#include "base/utf8.h"
#include "guide/lines.h"
#include "text/chat.h"
#include "text/repr.h"
#include "text/unicode.h"

#include <algorithm>
#include <optional>
#include <set>

namespace phi3mobile {

namespace {

constexpr std::string_view kOpen = "<|image_", kClose = "|>";

bool is_type(const Json& part, const char* type) { return part["type"].is_string() && part["type"].string() == type; }

// The place of a number between two marks.
struct Place {
  size_t start, stop;  // bytes of it
  size_t number;
};

// The next "<open>digits<close>" of a text.
std::optional<Place> next_place(std::string_view text, size_t from, std::string_view open, std::string_view close) {
  for (size_t start; (start = text.find(open, from)) != text.npos; from = start + 1) {
    const size_t first = start + open.size(), last = std::min(text.find_first_not_of("0123456789", first), text.size());
    if (last == first || text.substr(last, close.size()) != close) continue;
    size_t number = 0;
    for (const char digit : text.substr(first, last - first)) {
      number = std::min<size_t>(10 * number + size_t(digit - '0'), 1000000000);
    }
    return Place{start, last + close.size(), number};
  }
  return std::nullopt;
}

std::string named(const std::set<size_t>& numbers) {
  std::string names;
  for (const size_t number : numbers) {
    names += (names.empty() ? "" : ", ") + std::string(kOpen) + std::to_string(number) + std::string(kClose);
  }
  return names;
}

// A content: a text, or a list of texts, which are joined. One with images stays as it is.
Json content_of(const Json& content, const std::string& where) {
  if (content.is_string() || has_image(content)) return content;
  std::string joined;
  bool ok = content.is_array() && !content.array().empty();
  if (ok) {
    for (const Json& part : content.array()) {
      const Json& type = part["type"];
      ok &= type.is_string() && type.string() == "text" && part["text"].is_string();
      if (ok) joined += part["text"].string();
    }
  }
  if (!ok) throw InputError(where + " has no text as its content; give {\"role\": \"user\", \"content\": \"...\"}");
  return joined;
}

}  // namespace

bool has_image(const Json& content) {
  return content.is_array() &&
         std::any_of(content.array().begin(), content.array().end(), [](const Json& part) { return is_type(part, "image"); });
}

Json::Array checked_messages(const Json& given) {
  if (!given.is_array() || given.array().empty()) throw InputError("there are no messages; give at least one user message");
  Json::Array messages;
  for (const Json& message : given.array()) {
    const std::string where = "message " + std::to_string(messages.size());
    if (!message["role"].is_string())
      throw InputError(where + " is " + message.dump().substr(0, 80) + "; it must have a role and a content");
    Json checked;
    checked.set("role", message["role"]);
    checked.set("content", content_of(message["content"], where));
    if (message.has("name")) checked.set("name", message["name"]);
    messages.push_back(std::move(checked));
  }
  const Json& last = messages.back()["content"];
  if (messages.back()["role"].string() == "user" && last.is_string() && stripped(last.string()).empty()) {
    throw InputError("the prompt is empty: the last user message has no text; write one");
  }
  return messages;
}

Seen::Seen(const Json::Array& messages) {
  for (size_t index = 0; index < messages.size(); ++index) {
    messages_.push_back({messages[index]["role"], parts_of(index, messages[index]["content"])});
  }
}

std::vector<Seen::Part> Seen::parts_of(size_t index, const Json& content) {
  if (content.is_string()) return {{content.string(), kText}};
  const Json::Array& given = content.array();
  const size_t before = images_.size();
  const bool placed = std::any_of(given.begin(), given.end(), [](const Json& part) {
    return is_type(part, "text") && part["text"].is_string() && next_place(part["text"].string(), 0, kOpen, kClose);
  });
  std::vector<Part> parts;
  for (const Json& part : given) {
    if (is_type(part, "text") && part["text"].is_string()) {
      const std::string& text = part["text"].string();
      size_t done = 0;
      while (placed) {
        const auto place = next_place(text, done, kOpen, kClose);
        if (!place) break;
        parts.push_back({text.substr(done, place->start - done), kText});
        parts.push_back({"", place->number});
        done = place->stop;
      }
      parts.push_back({text.substr(done), kText});
    } else if (is_type(part, "image") && part["image"].is_integer()) {
      images_.push_back(part["image"]);
      if (placed) continue;
      parts.push_back({"", images_.size()});
      parts.push_back({"\n", kText});
    } else {
      throw InputError("message " + std::to_string(index) + " has the part " + cut(repr(part), 80) +
                       R"(; allowed are {"type": "text", "text": ...} and {"type": "image", "image": a number that )" +
                       "p3m_session_picture gave}");
    }
  }
  if (placed) check_numbers(index, parts, before);
  return parts;
}

void Seen::check_numbers(size_t index, const std::vector<Part>& parts, size_t before) const {
  std::set<size_t> unknown, unused;
  for (size_t number = before + 1; number <= images_.size(); ++number) unused.insert(number);
  for (const Part& part : parts) {
    if (part.number == kText) continue;
    if (part.number == 0 || part.number > images_.size()) unknown.insert(part.number);
    unused.erase(part.number);
  }
  const std::string message = "message " + std::to_string(index), after = std::to_string(images_.size());
  if (!unknown.empty()) {
    throw InputError(
        message + " says " + named(unknown) + ", and the conversation has " + after + " images up to it: number them from 1");
  }
  if (!unused.empty()) {
    throw InputError(message + " gives " + std::to_string(images_.size() - before) + " images and never says " + named(unused) +
                     "; place each, or none");
  }
}

std::vector<int64_t> Seen::encode(const Json& segments, const Tokenizer& tokenizer,
    const std::function<std::vector<int64_t>(const Json& image)>& ids_of) const {
  const std::string mark = unused();
  Json::Array marked;
  for (const Message& message : messages_) {
    std::string text;
    for (const Part& part : message.parts) text += part.number == kText ? part.text : mark + std::to_string(part.number) + mark;
    Json one{Json::Object()};
    one.set("role", message.role);
    one.set("content", std::move(text));
    marked.push_back(std::move(one));
  }
  std::vector<int64_t> ids;
  std::vector<Span> piece;
  const auto end_piece = [&] {
    const bool empty = std::all_of(piece.begin(), piece.end(), [](const Span& span) { return span.text.empty(); });
    const std::vector<int64_t> own = empty ? std::vector<int64_t>() : tokenizer.encode(piece);
    const std::vector<int64_t>& bos = tokenizer.before();
    const bool begun = own.size() >= bos.size() && std::equal(bos.begin(), bos.end(), own.begin());
    if (!begun) ids.insert(ids.end(), bos.begin(), bos.end());
    ids.insert(ids.end(), own.begin(), own.end());
    piece.clear();
  };
  for (const Span& span : spans(segments, Json(marked))) {
    size_t done = 0;
    while (const auto place = next_place(span.text, done, mark, mark)) {
      piece.push_back({span.text.substr(done, place->start - done), span.trusted});
      end_piece();
      const std::vector<int64_t> of_image = ids_of(images_[place->number - 1]);
      ids.insert(ids.end(), of_image.begin(), of_image.end());
      done = place->stop;
    }
    piece.push_back({span.text.substr(done), span.trusted});
  }
  end_piece();
  return ids;
}

// A private character that is in no content.
std::string Seen::unused() const {
  for (uint32_t code = 0xE100; code < 0xF900; ++code) {
    std::string mark;
    append_utf8(mark, code);
    const auto has = [&](const Part& part) { return part.text.find(mark) != std::string::npos; };
    const bool taken = std::any_of(messages_.begin(), messages_.end(),
        [&](const Message& one) { return std::any_of(one.parts.begin(), one.parts.end(), has); });
    if (!taken) return mark;
  }
  throw InputError("the messages have every private character: leave some out");
}

}  // namespace phi3mobile
