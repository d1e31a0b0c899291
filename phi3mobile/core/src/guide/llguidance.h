// llguidance, the engine of constrained output, through its C API: a library of its own, found when the first answer is guided.
// Python's session uses the same one, so the same texts are allowed.
#pragma once

#include "base/json.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace phi3mobile {

// Which file holds it: a path, before it is first used; "": none is to be used; null: the default places again. For the whole
// process.
void use_llguidance(const char* path);
// Its own name and version. InputError: this build has none, or what is there can't be used.
const char* llguidance_version();
// Whether it is there; never throws.
bool has_llguidance();

// Token ids of exactly these bytes, as a tokenizer would spell them.
using Spell = std::function<std::vector<uint32_t>(std::string_view)>;

// The tokens of a vocabulary, by id; one without bytes is never allowed. Its end token is one more id than it has.
class GuideTokens {
 public:
  GuideTokens(const std::vector<std::string>& tokens, Spell spell);
  ~GuideTokens();
  GuideTokens(const GuideTokens&) = delete;
  GuideTokens& operator=(const GuideTokens&) = delete;

  size_t size() const { return size_; }
  const void* handle() const { return handle_; }

 private:
  Spell spell_;
  size_t size_;
  void* handle_ = nullptr;
};

// The 256 bytes, each a token of its own.
const GuideTokens& bytes_vocabulary();

// Follows a text, token by token. A failed one allows nothing more (is_error).
class Matcher {
 public:
  // grammar: {"grammars": [{"json_schema" or "lark_grammar"}, ...]}.
  Matcher(const GuideTokens& vocabulary, const Json& grammar);
  Matcher(const Matcher& other);  // a copy that goes on by itself
  Matcher(Matcher&& other) noexcept;
  Matcher& operator=(Matcher other) noexcept;
  ~Matcher();

  // One bit for each id, those of an allowed token set, in words of 32; none where it failed.
  const std::vector<uint32_t>& allowed();
  bool consume(const std::vector<int64_t>& tokens);
  // How many of the tokens may follow, and the end after them where `then_end`; changes nothing.
  size_t validate(const std::vector<int64_t>& tokens, bool then_end = false);
  std::vector<int64_t> forced();  // what must follow
  bool accepting();               // the text is whole
  bool stopped() const;           // nothing may follow
  bool is_error() const;
  std::string error();

 private:
  size_t vocabulary_;
  void* handle_;
  std::vector<uint32_t> bits_;
};

// Its reason against a grammar; "" if it takes it.
std::string grammar_refusal(const Json& grammar);

}  // namespace phi3mobile
