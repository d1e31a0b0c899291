#include "p3m_arguments.h"

#include "base/files.h"

#include <cstdlib>

namespace phi3mobile {

namespace {

struct Option {
  const char* name;
  enum { Integer, Number, Flag } kind;
  const char* key;  // of the request; of the session's options where `opens`
  bool opens = false;
};

constexpr Option kOptions[] = {{"--temperature", Option::Number, "temperature"}, {"--top-k", Option::Integer, "top_k"},
    {"--top-p", Option::Number, "top_p"}, {"--min-p", Option::Number, "min_p"}, {"--seed", Option::Integer, "seed"},
    {"--repetition-penalty", Option::Number, "repetition_penalty"}, {"--lookup", Option::Flag, "lookup"},
    {"--num-crops", Option::Integer, "num_crops", true}, {"--additional-properties", Option::Flag, "additional_properties"},
    {"--threads", Option::Integer, "threads", true}, {"--experts-memory", Option::Integer, "experts_memory", true}};

Json number_of(const std::string& option, const std::string& text, bool whole) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end || (whole && value != double(int64_t(value)))) {
    throw std::invalid_argument(option + " is " + text + "; it must be " + (whole ? "an integer" : "a number"));
  }
  return whole ? Json(int64_t(value)) : Json(value);
}

}  // namespace

Arguments parsed(int count, char** given, size_t least, size_t most) {
  Arguments found;
  Json::Array stop;
  for (int i = 1; i < count; ++i) {
    const std::string name = given[i];
    const auto value = [&] {
      if (i + 1 == count) throw std::invalid_argument(name + " needs a value");
      return std::string(given[++i]);
    };
    if (name.rfind("--", 0) != 0)
      found.plain.push_back(name);
    else if (name == "--system")
      found.system = value();
    else if (name == "--stop")
      stop.emplace_back(value());
    else if (name == "--image")
      found.images.push_back(value());
    else if (name == "--json-schema" || name == "--schema" || name == "--grammar")
      found.request.set(name == "--grammar" ? "grammar" : "schema", read_file(value()));
    else if (name == "--regex")
      found.request.set("regex", value());
    else if (name == "--cache")
      found.options.set("cache", value());
    else if (name == "--features")
      found.features = value();
    else if (name == "--raw")
      found.raw = true;
    else if (name == "--slide")
      found.request.set("overflow", "slide");
    else if (name == "--stats")
      found.statistics = true;
    else if (name == "--max-tokens") {
      const Json limit = number_of(name, value(), true);
      found.request.set("max_tokens", limit.integer() ? limit : Json());
    } else {
      const Option* known = nullptr;
      for (const Option& option : kOptions) {
        if (name == option.name) known = &option;
      }
      if (!known) throw std::invalid_argument("the option " + name + " is unknown: see p3m --help");
      Json read = known->kind == Option::Flag ? Json(true) : number_of(name, value(), known->kind == Option::Integer);
      (known->opens ? found.options : found.request).set(known->key, std::move(read));
    }
  }
  if (!stop.empty()) found.request.set("stop", std::move(stop));
  if (found.plain.size() < least || found.plain.size() > most)
    throw std::invalid_argument("wrong number of arguments: see p3m --help");
  return found;
}

bool read_line(std::string* line) {
  line->clear();
  for (int c; (c = std::fgetc(stdin)) != EOF;) {
    if (c == '\n') return true;
    *line += char(c);
  }
  return !line->empty();
}

}  // namespace phi3mobile
