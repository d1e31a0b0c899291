// The C border of the tokenizer: no exception crosses it.
#include "phi3mobile_text.h"

#include "base/border.h"
#include "base/error.h"
#include "base/json.h"
#include "text/chat.h"
#include "text/tokenizer.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

struct p3m_tokenizer {
  std::unique_ptr<phi3mobile::Tokenizer> own;
};

struct p3m_stream {
  phi3mobile::TextStream own;
  std::string text;  // what the last call gave
};

namespace {

using phi3mobile::guarded;
using phi3mobile::InputError;
using phi3mobile::Json;
using phi3mobile::required;
using Ids = std::vector<int64_t>;

int64_t stored(const Ids& found, int64_t* ids, size_t capacity) {
  if (ids) std::copy_n(found.begin(), std::min(found.size(), capacity), ids);
  return int64_t(found.size());
}

std::vector<phi3mobile::Span> spans_in(const char* text) {
  const Json spans = Json::parse(required(text, "spans"), "spans");
  std::vector<phi3mobile::Span> found;
  if (!spans.is_array()) throw InputError(R"(spans is not a list; give [["text", true], ...])");
  for (const Json& span : spans.array()) {
    const bool pair = span.is_array() && span.array().size() == 2;
    if (!pair || !span.array()[0].is_string() || !span.array()[1].is_bool()) {
      throw InputError(R"(a span is not ["text", true] or ["text", false])");
    }
    found.push_back({span.array()[0].string(), span.array()[1].boolean()});
  }
  return found;
}

const char* given(p3m_stream* stream, std::string text, size_t* size) {
  stream->text = std::move(text);
  if (size) *size = stream->text.size();
  return stream->text.c_str();
}

}  // namespace

extern "C" {

p3m_tokenizer* p3m_tokenizer_open(const char* folder, char* error, size_t error_size) {
  return guarded(static_cast<p3m_tokenizer*>(nullptr), error, error_size,
      [&] { return new p3m_tokenizer{phi3mobile::Tokenizer::open(required(folder, "folder"))}; });
}

void p3m_tokenizer_close(p3m_tokenizer* tokenizer) { delete tokenizer; }

int64_t p3m_vocab_size(const p3m_tokenizer* tokenizer) { return tokenizer->own->vocab_size(); }

int64_t p3m_control_id(const p3m_tokenizer* tokenizer, const char* text) {
  return guarded(int64_t(-1), nullptr, 0, [&] {
    const auto& known = tokenizer->own->special_ids();
    const auto found = known.find(required(text, "text"));
    return found == known.end() ? int64_t(-1) : found->second;
  });
}

int p3m_is_control(const p3m_tokenizer* tokenizer, int64_t id) { return tokenizer->own->is_control(id); }

const char* p3m_token_bytes(const p3m_tokenizer* tokenizer, int64_t id, size_t* size) {
  const std::string_view bytes = tokenizer->own->token_bytes(id);
  if (size) *size = bytes.size();
  return bytes.data() ? bytes.data() : "";
}

int64_t p3m_encode(const p3m_tokenizer* tokenizer, const char* text, size_t size, int special, int64_t* ids, size_t capacity,
    char* error, size_t error_size) {
  return guarded(int64_t(-1), error, error_size, [&] {
    const std::string_view given = size ? std::string_view(required(text, "text"), size) : std::string_view();
    return stored(required(tokenizer, "tokenizer")->own->encode(given, special != 0), ids, capacity);
  });
}

int64_t p3m_encode_spans(
    const p3m_tokenizer* tokenizer, const char* spans, int64_t* ids, size_t capacity, char* error, size_t error_size) {
  return guarded(int64_t(-1), error, error_size,
      [&] { return stored(required(tokenizer, "tokenizer")->own->encode(spans_in(spans)), ids, capacity); });
}

int64_t p3m_encode_chat(const p3m_tokenizer* tokenizer, const char* segments, const char* messages, int64_t* ids,
    size_t capacity, char* error, size_t error_size) {
  return guarded(int64_t(-1), error, error_size, [&] {
    const Json conversation = Json::parse(required(messages, "messages"), "messages");
    const Json form = Json::parse(required(segments, "segments"), "segments");
    const auto spans = phi3mobile::spans(form, conversation);
    return stored(required(tokenizer, "tokenizer")->own->encode(spans), ids, capacity);
  });
}

int64_t p3m_decode(const p3m_tokenizer* tokenizer, const int64_t* ids, size_t count, char* text, size_t capacity, char* error,
    size_t error_size) {
  return guarded(int64_t(-1), error, error_size, [&] {
    const Ids given = count ? Ids(required(ids, "ids"), ids + count) : Ids();
    const std::string found = required(tokenizer, "tokenizer")->own->decode(given);
    if (text) std::memcpy(text, found.data(), std::min(found.size(), capacity));
    return int64_t(found.size());
  });
}

p3m_stream* p3m_stream_open(const p3m_tokenizer* tokenizer, int at_start, char* error, size_t error_size) {
  return guarded(static_cast<p3m_stream*>(nullptr), error, error_size,
      [&] { return new p3m_stream{required(tokenizer, "tokenizer")->own->stream(at_start != 0), {}}; });
}

const char* p3m_stream_push(p3m_stream* stream, int64_t id, size_t* size) {
  return guarded(static_cast<const char*>(nullptr), nullptr, 0, [&] { return given(stream, stream->own.push(id), size); });
}

const char* p3m_stream_finish(p3m_stream* stream, size_t* size) {
  return guarded(static_cast<const char*>(nullptr), nullptr, 0, [&] { return given(stream, stream->own.finish(), size); });
}

void p3m_stream_close(p3m_stream* stream) { delete stream; }

}  // extern "C"
