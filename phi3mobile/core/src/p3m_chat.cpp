// p3m run, p3m chat, p3m verify and p3m tokens: nothing but the public C functions.
#include "base/error.h"
#include "base/files.h"
#include "base/json.h"
#include "p3m.h"
#include "p3m_messages.h"
#include "phi3mobile_session.h"
#include "phi3mobile_text.h"

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <unistd.h>

namespace {

using phi3mobile::Json;
using phi3mobile::message;
using phi3mobile::question;
using phi3mobile::shown;

struct Close {
  void operator()(p3m_session* session) const { p3m_session_close(session); }
  void operator()(p3m_bundle* bundle) const { p3m_bundle_close(bundle); }
  void operator()(p3m_tokenizer* tokenizer) const { p3m_tokenizer_close(tokenizer); }
};
using SessionHandle = std::unique_ptr<p3m_session, Close>;

struct Arguments {
  std::vector<std::string> plain, images;
  Json request{Json::Object()}, options{Json::Object()};
  std::string system;
  bool raw = false, statistics = false;
};

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
      found.request.set(name == "--grammar" ? "grammar" : "schema", phi3mobile::read_file(value()));
    else if (name == "--regex")
      found.request.set("regex", value());
    else if (name == "--cache")
      found.options.set("cache", value());
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

p3m_session* running = nullptr;  // what an interrupt ends

void interrupt(int) {
  if (!running) std::_Exit(130);
  p3m_session_cancel(running);
}

SessionHandle opened(const Arguments& arguments) {
  char error[2000] = "";
  SessionHandle session(
      p3m_session_open(arguments.plain.front().c_str(), arguments.options.dump().c_str(), error, sizeof error));
  if (!session) throw std::invalid_argument(error);
  return session;
}

// Streams one answer to stdout; gives its text. Statistics: in JSON.
std::string answer(p3m_session* session, const Json& request, std::string* statistics) {
  char error[2000] = "";
  if (p3m_session_start(session, request.dump().c_str(), error, sizeof error)) throw std::invalid_argument(error);
  std::string all;
  const char* text = nullptr;
  size_t size = 0;
  running = session;
  for (int kind; (kind = p3m_session_next(session, &text, &size)) != P3M_EVENT_DONE;) {
    if (kind == P3M_EVENT_ERROR) throw std::runtime_error(std::string(text, size));
    if (kind == P3M_EVENT_NOTE) std::fprintf(stderr, "%s\n", Json::parse({text, size}, "a note")["message"].string().c_str());
    if (kind != P3M_EVENT_TEXT) continue;
    all.append(text, size);
    std::fwrite(text, 1, size, stdout);
    std::fflush(stdout);
  }
  running = nullptr;
  *statistics = text;
  std::printf("\n");
  return all;
}

// One verb: what was given wrong is told in a line and gives 2, what failed 1.
template <class Work>
int told(Work work) {
  try {
    return work();
  } catch (const std::invalid_argument& wrong) {
    return std::fprintf(stderr, "p3m: %s\n", wrong.what()), 2;
  } catch (const phi3mobile::InputError& wrong) {
    return std::fprintf(stderr, "p3m: %s\n", wrong.what()), 2;
  } catch (const std::exception& failed) {
    return std::fprintf(stderr, "p3m: %s\n", failed.what()), 1;
  }
}

class Chat {
 public:
  Chat(p3m_session* session, const Arguments& arguments) : session_(session), arguments_(arguments) { begin(); }

  // False: the user leaves.
  bool line(const std::string& text) {
    if (text == "/exit" || text == "/quit") return false;
    if (text == "/reset")
      begin();
    else if (text == "/undo")
      undo();
    else if (text.rfind("/save ", 0) == 0)
      save(text.substr(6));
    else if (text.rfind("/load ", 0) == 0)
      load(text.substr(6));
    else if (text.rfind("/image ", 0) == 0)
      attach(text.substr(7));
    else if (text.rfind("/", 0) == 0)
      std::fprintf(stderr, "commands: /reset, /undo, /image FILE, /save FILE, /load FILE, /exit\n");
    else if (!text.empty())
      say(text);
    return true;
  }

 private:
  void begin() {
    messages_.clear();
    images_.clear();
    if (!arguments_.system.empty()) messages_.push_back(message("system", arguments_.system));
  }

  void undo() {
    while (!messages_.empty() && messages_.back()["role"].string() == "assistant") messages_.pop_back();
    if (!messages_.empty() && messages_.back()["role"].string() == "user") messages_.pop_back();
  }

  // A picture for the next message.
  void attach(const std::string& path) {
    try {
      images_.push_back(shown(session_, path));
    } catch (const std::exception& wrong) {
      std::fprintf(stderr, "%s\n", wrong.what());
    }
  }

  void say(const std::string& text) {
    Json request = arguments_.request;
    messages_.push_back(question(text, images_));
    request.set("messages", messages_);
    std::string statistics;
    try {
      messages_.push_back(message("assistant", answer(session_, request, &statistics)));
      images_.clear();
    } catch (const std::invalid_argument& wrong) {
      messages_.pop_back();
      std::fprintf(stderr, "%s\n", wrong.what());
    }
    if (arguments_.statistics && !statistics.empty()) std::fprintf(stderr, "%s\n", statistics.c_str());
  }

  void save(const std::string& path) {
    char error[1000] = "";
    const long long size = p3m_session_save(session_, path.c_str(), error, sizeof error);
    std::fprintf(stderr, size < 0 ? "%s\n" : "saved\n", error);
  }

  void load(const std::string& path) {
    char error[1000] = "";
    const long long count = p3m_session_restore(session_, path.c_str(), error, sizeof error);
    if (count < 0)
      std::fprintf(stderr, "%s\n", error);
    else
      std::fprintf(stderr, "%lld tokens are known\n", count);
  }

  p3m_session* session_;
  const Arguments& arguments_;
  Json::Array messages_;
  std::vector<int64_t> images_;  // of the next message
};

bool read_line(std::string* line) {
  line->clear();
  for (int c; (c = std::fgetc(stdin)) != EOF;) {
    if (c == '\n') return true;
    *line += char(c);
  }
  return !line->empty();
}

}  // namespace

int run(int count, char** given) {
  return told([&] {
    const Arguments arguments = parsed(count, given, 2, 2);
    const SessionHandle session = opened(arguments);
    std::signal(SIGINT, interrupt);
    Json request = arguments.request;
    if (arguments.raw && !arguments.images.empty())
      throw std::invalid_argument("--image is shown in a chat and --raw completes a text: leave one of them out");
    if (arguments.raw) {
      request.set("prompt", arguments.plain[1]);
    } else {
      Json::Array messages;
      if (!arguments.system.empty()) messages.push_back(message("system", arguments.system));
      std::vector<int64_t> images;
      for (const std::string& path : arguments.images) images.push_back(shown(session.get(), path));
      messages.push_back(question(arguments.plain[1], images));
      request.set("messages", std::move(messages));
    }
    std::string statistics;
    answer(session.get(), request, &statistics);
    if (arguments.statistics) std::fprintf(stderr, "%s\n", statistics.c_str());
    return 0;
  });
}

int chat(int count, char** given) {
  return told([&] {
    const Arguments arguments = parsed(count, given, 1, 1);
    if (!arguments.images.empty()) throw std::invalid_argument("--image is for p3m run; in a chat say /image FILE");
    const SessionHandle session = opened(arguments);
    std::signal(SIGINT, interrupt);
    Chat chat(session.get(), arguments);
    const bool asks = ::isatty(0);
    std::string line;
    do {
      if (asks) std::fputs("> ", stderr);
    } while (read_line(&line) && chat.line(line));
    return 0;
  });
}

int verify(int count, char** given) {
  return told([&] {
    const Arguments arguments = parsed(count, given, 1, 1);
    char error[2000] = "";
    const std::unique_ptr<p3m_bundle, Close> bundle(p3m_bundle_open(arguments.plain.front().c_str(), error, sizeof error));
    if (!bundle || p3m_bundle_verify(bundle.get(), nullptr, nullptr, error, sizeof error)) throw std::invalid_argument(error);
    std::printf("every file is as it was made\n");
    return 0;
  });
}

int tokens(int count, char** given) {
  return told([&] {
    const Arguments arguments = parsed(count, given, 1, 2);
    char error[2000] = "";
    const std::unique_ptr<p3m_tokenizer, Close> tokenizer(
        p3m_tokenizer_open(arguments.plain.front().c_str(), error, sizeof error));
    if (!tokenizer) throw std::invalid_argument(error);
    const auto show = [&](const std::string& text) {
      std::vector<int64_t> ids;
      int64_t found = 0;
      do {  // first it is counted
        ids.resize(size_t(found));
        found = p3m_encode(tokenizer.get(), text.data(), text.size(), 1, ids.data(), ids.size(), error, sizeof error);
        if (found < 0) throw std::invalid_argument(error);
      } while (size_t(found) > ids.size());
      for (int64_t i = 0; i < found; ++i) std::printf("%s%lld", i ? " " : "", static_cast<long long>(ids[size_t(i)]));
      std::printf("\n");
    };
    if (arguments.plain.size() == 2) return show(arguments.plain[1]), 0;
    for (std::string line; read_line(&line);) {
      const Json text = Json::parse(line, "a line");
      if (!text.is_string())
        throw std::invalid_argument("a line is " + text.dump().substr(0, 80) + "; it must be a JSON string");
      show(text.string());
    }
    return 0;
  });
}
