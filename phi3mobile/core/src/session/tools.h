// Tool calls: functions that an answer may ask for, told in the prompt, read from the answer, as phi3mobile/session/tools.py.
#pragma once

#include "base/json.h"
#include "text/tokenizer.h"

#include <string>
#include <utility>
#include <vector>

namespace phi3mobile {

class Tools {
 public:
  // A list of {"name", "description", "parameters"}, or of OpenAI's form. InputError: names that are none or stand there twice.
  explicit Tools(const Json& tools);

  // The messages with the tools in the system message and results as the user's, and the mark (see marked_spans). system: the
  // chat template has a system role; else the first message is told. control: the vocabulary has <|tool|> and <|/tool|>.
  std::pair<Json::Array, std::string> told(const Json::Array& messages, bool system, bool control) const;

  // llguidance's grammar of answers in words, or of calls whose arguments are valid under the tools' schemas. InputError: a
  // schema that can't be followed.
  Json grammar() const;

  // The calls, {"name", "arguments"} each, that a whole answer is; none if it is something else.
  std::vector<Json> read(const std::string& text) const;

  static bool known_to(const Tokenizer& tokenizer);  // whether the vocabulary has the control tokens

 private:
  bool has(const Json& name) const;

  Json::Array tools_;
};

// The messages with what functions gave told as the user's. InputError: a result without a name, or one that is no text.
Json::Array results_as_messages(const Json::Array& messages);

// Parts in which the first mark has become <|tool|> and the second <|/tool|>, trusted.
std::vector<Span> marked_spans(const std::vector<Span>& parts, const std::string& mark);

// Lets an answer in words through, and keeps back what may be a call.
class CallGate {
 public:
  std::string push(const std::string& text);  // what may be shown now
  std::string finish() { return std::exchange(held_, {}); }
  bool opened() const { return opened_; }  // the answer is words

 private:
  std::string held_;
  bool opened_ = false;
};

}  // namespace phi3mobile
