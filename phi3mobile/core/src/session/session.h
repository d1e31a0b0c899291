// Messages or a prompt in, streamed text and statistics out, over any engine: phi3mobile/session/session.py.
#pragma once

#include "base/json.h"
#include "guide/guide.h"
#include "session/answer.h"
#include "session/engine.h"
#include "session/pictures.h"
#include "session/stop_gate.h"
#include "session/tools.h"
#include "session/window.h"
#include "text/tokenizer.h"

#include <atomic>
#include <deque>
#include <memory>
#include <string>

namespace phi3mobile {

// What a session takes from a bundle.
struct Parts {
  std::shared_ptr<const Tokenizer> tokenizer;
  Json segments;  // of the chat template; null: it has none, `template_given` says why
  bool template_given = false;
  std::unordered_set<int64_t> eos;
  Sampling sampling;  // where nobody says
};

struct Event {
  enum class Kind { Text, Note, Progress, ToolCall, Done } kind;
  std::string text;  // Text: a piece; else JSON
};

class Session {
 public:
  // pictures: null where the model, or its engine, sees none.
  Session(Parts parts, std::unique_ptr<Engine> engine, std::unique_ptr<Pictures> pictures = nullptr);

  // Takes a picture for messages of this session; gives the number that stands for it there: equal pixels have the same.
  // InputError: the session sees none, or not this one.
  int64_t picture(const Pixels& pixels);
  // What is seen of pictures is kept in a folder too. InputError: the session sees none, no folder.
  void keep_features(std::string folder, const std::string& runtime);

  // Begins an answer, ending the one before. request: see p3m_session_start. InputError: what is wrong with it.
  void start(const Json& request);
  // The next event; after Done, Done again. std::runtime_error: the engine failed, which ended the answer.
  Event next();
  void cancel() { cancelled_ = true; }
  void reset();

  Rows& rows() { return rows_; }
  const Engine& engine() const { return *engine_; }

 private:
  std::vector<int64_t> encode(const Json::Array& messages, const Tools* tools) const;
  std::unique_ptr<Guide> guide_of(const Json& grammar);
  [[noreturn]] void too_long(int64_t length, const std::string& what, const std::vector<int64_t>& tokens = {}) const;
  void note_dropped();
  Event ended(std::string shown);
  std::string shown(std::string text) { return words_ ? words_->push(text) : std::move(text); }
  Event done();

  Parts parts_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Pictures> pictures_;
  Rows rows_;
  std::shared_ptr<const GuideWords> vocabulary_;  // made for the first guide
  std::atomic<bool> cancelled_{false};
  std::unique_ptr<Window> window_;
  std::unique_ptr<Answer> answer_;
  std::unique_ptr<Tools> tools_;
  std::unique_ptr<CallGate> words_;  // where there are tools
  std::deque<Event> pending_;        // before Done
  std::unique_ptr<StopGate> gate_;
  std::unique_ptr<TextStream> text_;
  bool finished_ = true;
  std::string last_;  // the last answer's statistics
};

// The sampling of a request: what it gives by name, else the bundle's (phi3mobile/session/defaults.py).
Sampling chosen_sampling(const Json& request, Sampling chosen);
// How answers are sampled where nobody says: a manifest's `generation` section, for a model of so many parameters.
Sampling default_sampling(const Json& generation, int64_t parameters);

}  // namespace phi3mobile
