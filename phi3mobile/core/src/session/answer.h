// The token loop over an engine, as phi3mobile/session/decoding.py: prefill with prefix reuse, decode, LongRoPE switch,
// verified drafts. Knows no text.
#pragma once

#include "guide/guide.h"
#include "session/lookup.h"
#include "session/repetition.h"
#include "session/rows.h"
#include "session/sampling.h"

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

namespace phi3mobile {

// Something to tell the user while an answer is made.
struct Note {
  const char* kind;  // "long_switch", "kv_back", "window", "repetition", "picture", "closed"
  std::string message;
};

struct AnswerOptions {
  std::vector<int64_t> prompt;
  std::unordered_set<int64_t> eos;
  Sampling sampling;
  std::optional<int64_t> max_tokens;
  bool lookup = false;
  bool repetition = false;       // an answer may repeat one block for ever
  std::unique_ptr<Guide> guide;  // started; it never knows more than what was given out
  std::function<bool()> cancelled = [] { return false; };
  // Given the answer so far, a shorter prompt and that answer; none: there is none. Called when the context is full.
  std::function<std::optional<std::vector<int64_t>>(const std::vector<int64_t>&)> slide = [](const auto&) {
    return std::nullopt;
  };
};

struct Progress {
  int64_t done, total;  // tokens of the prefill that runs
};

class Answer {
 public:
  enum class Step { Token, Prefilled, Noted, End };

  Answer(Rows& rows, AnswerOptions options);
  // One step further: a token of the answer (`token`), a chunk of prefill (`progress`), a note (`notes`), or its end.
  Step next();

  int64_t token = 0;
  Progress progress{0, 0};
  std::deque<Note> notes;

  std::string finish_reason = "cancelled";  // what it stays if nobody asks for more
  int64_t prompt_tokens = 0, prefilled_tokens = 0, generated_tokens = 0, forwards = 0, drafted = 0, accepted = 0;
  std::optional<int64_t> reused_tokens;
  bool long_switch = false;
  double prefill_s = 0, refill_s = 0;                                  // refill_s: the part after the first token
  std::vector<double> times;                                           // seconds of work up to each token; the first is TTFT
  double engine_s() const { return rows_.engine_s - engine_before_; }  // of the engine's forwards

 private:
  using Clock = std::chrono::steady_clock;
  enum class State { StartPrefill, Prefill, Sample, Told, Rejoin, Done };  // Told: a note comes before the token

  Step start_prefill();
  Step prefill_chunk();
  Step sample();
  Step after_token();
  Step advance();
  Step end(const char* reason);
  Step end_whole();
  Step cut(const char* reason);
  bool guided();
  void propose();
  bool wants_long() const;
  int64_t draft_limit() const;
  void counted();
  void prefilled_in(double seconds);
  double lap();

  Rows& rows_;
  AnswerOptions options_;
  std::vector<int64_t> tokens_;  // the prompt; grows by the answer
  std::vector<int64_t> counted_, proposed_;
  Sampler sampler_;
  std::optional<Lookup> lookup_;
  Repetition repetition_;
  State state_ = State::StartPrefill;
  int64_t position_ = 0;           // of the next chunk of prefill
  const float* logits_ = nullptr;  // [rows_left_, vocab]: follow the last token and the draft's
  size_t row_ = 0, row_count_ = 0;
  size_t matched_ = 0;
  bool right_ = false;
  double worked_ = 0;  // seconds since the last token
  double engine_before_ = 0;
  Clock::time_point resumed_;
};

}  // namespace phi3mobile
