// p3m run and p3m chat: nothing but the public C functions.
#include "p3m.h"
#include "p3m_arguments.h"
#include "p3m_messages.h"

#include <csignal>
#include <cstdlib>
#include <memory>

#include <unistd.h>

namespace {

using namespace phi3mobile;
using SessionHandle = std::unique_ptr<p3m_session, Close>;

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
  if (!arguments.features.empty() &&
      p3m_session_keep_features(session.get(), arguments.features.c_str(), nullptr, error, sizeof error)) {
    throw std::invalid_argument(error);
  }
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
