#include "session/answer.h"

#include "base/error.h"

#include <algorithm>
#include <iterator>

namespace phi3mobile {

Answer::Answer(Rows& rows, AnswerOptions options)
    : prompt_tokens(int64_t(options.prompt.size())),
      rows_(rows),
      options_(std::move(options)),
      tokens_(std::move(options_.prompt)),
      sampler_(options_.sampling, rows.engine.info.vocab) {
  if (options_.lookup) lookup_.emplace(tokens_);
  engine_before_ = rows_.engine_s;
}

Answer::Step Answer::next() {
  if (!notes.empty()) return Step::Noted;
  resumed_ = Clock::now();
  // A state that has nothing to show goes on to the next one.
  for (;;) {
    switch (state_) {
      case State::StartPrefill: {
        if (const Step step = start_prefill(); step == Step::Noted) return step;
        break;
      }
      case State::Prefill:
        return prefill_chunk();
      case State::Sample:
        return sample();
      case State::Told:
        state_ = State::Rejoin;
        return Step::Token;
      case State::Rejoin: {
        if (const Step step = after_token(); step != Step::Token) return step;
        break;
      }
      case State::Done:
        return Step::End;
    }
  }
}

// Seconds since the step began, counted as work.
double Answer::lap() {
  const auto now = Clock::now();
  const double seconds = std::chrono::duration<double>(now - resumed_).count();
  resumed_ = now;
  worked_ += seconds;
  return seconds;
}

Answer::Step Answer::end(const char* reason) {
  finish_reason = reason;
  state_ = State::Done;
  return notes.empty() ? Step::End : Step::Noted;
}

// The answer is whole; where the guide had to close it, the limit ended it.
Answer::Step Answer::end_whole() { return end(options_.guide && options_.guide->closing() ? "length" : "stop"); }

// A limit ends the answer. InputError: before the guide calls it complete.
Answer::Step Answer::cut(const char* reason) {
  if (options_.guide && !options_.guide->complete()) {
    throw InputError("the answer did not fit " + std::to_string(generated_tokens) +
                     " tokens and is incomplete; raise max_tokens (--max-tokens), shorten the prompt or use a larger context");
  }
  return end(reason);
}

bool Answer::wants_long() const {
  const auto& limit = rows_.engine.info.original_context;
  return limit && int64_t(tokens_.size()) > *limit;
}

Answer::Step Answer::start_prefill() {
  const auto& info = rows_.engine.info;
  const bool is_long = wants_long();
  const std::string all = std::to_string(tokens_.size());
  int64_t start = std::min(rows_.common(tokens_), int64_t(tokens_.size()) - 1);  // the last token runs again: for its logits
  if (start && rows_.is_long != is_long) {
    // A row's keys carry its rope factors, so rows of both kinds in one sequence would not be the model's.
    long_switch = true;
    notes.push_back({"long_switch", "LongRoPE: the sequence is " + std::string(is_long ? "past " : "within ") +
                                        std::to_string(*info.original_context) + " tokens; all " + all +
                                        " are prefilled again with the " + (is_long ? "long" : "short") + " factors"});
  } else if (!rows_.reaches(start)) {
    notes.push_back({"kv_back",
        "the KV cache keeps " + std::to_string(*info.back) + " tokens to go back by; all " + all + " are prefilled again"});
  }
  if (rows_.is_long != is_long || !rows_.reaches(start)) start = 0;
  if (!reused_tokens) reused_tokens = start;
  position_ = start;
  progress = {0, int64_t(tokens_.size()) - start};
  state_ = State::Prefill;
  lap();
  return notes.empty() ? Step::Prefilled : Step::Noted;
}

Answer::Step Answer::prefill_chunk() {
  if (options_.cancelled()) return end("cancelled");
  const int64_t count = std::min(rows_.engine.info.max_chunk, int64_t(tokens_.size()) - position_);
  lap();
  if (rows_.sight) {
    const auto told = rows_.sight->look(tokens_.data() + position_, count);
    prefilled_in(lap());
    if (told && !told->empty()) notes.push_back({"picture", *told});
    if (told) return notes.empty() ? Step::Prefilled : Step::Noted;
  }
  const float* logits = rows_.prefill(tokens_.data() + position_, count, position_, wants_long());
  prefilled_in(lap());
  prefilled_tokens += count;
  position_ += count;
  progress.done += count;
  if (position_ == int64_t(tokens_.size())) {
    logits_ = logits;
    row_ = matched_ = 0;
    row_count_ = 1;
    proposed_.clear();
    state_ = State::Sample;
  }
  return Step::Prefilled;
}

void Answer::prefilled_in(double seconds) {
  prefill_s += seconds;
  if (!times.empty()) refill_s += seconds;
}

// The tokens that the repetition penalty counts.
void Answer::counted() {
  counted_.clear();
  if (options_.sampling.repetition_penalty == 1) return;
  const auto start = options_.sampling.penalize_prompt ? tokens_.begin() : tokens_.end() - std::ptrdiff_t(generated_tokens);
  std::copy_if(start, tokens_.end(), std::back_inserter(counted_), [](int64_t token) { return token >= 0; });
}

// Makes the sampled token the one that the guide takes for it. False: it ends the answer.
bool Answer::guided() {
  Guide& guide = *options_.guide;
  const bool was_closing = guide.closing();
  const auto taken = guide.push(token);
  if (guide.closing() && !was_closing) {
    notes.push_back(
        {"closed", "the answer is closed after " + std::to_string(generated_tokens) + " tokens: no more would fit the limit"});
  }
  if (taken) token = *taken;
  return taken.has_value();
}

// The row's token. Rows count as long as the draft was what is sampled.
Answer::Step Answer::sample() {
  counted();
  const int64_t vocab = rows_.engine.info.vocab;
  const float* row = logits_ + int64_t(row_) * vocab;
  if (options_.guide) row = options_.guide->mask(row, vocab, options_.eos);
  token = sampler_.next(row, counted_);
  const bool goes_on = options_.eos.count(token) || !options_.guide || guided();
  if (!goes_on || options_.eos.count(token)) return end_whole();
  right_ = matched_ < proposed_.size() && token == proposed_[matched_];
  matched_ += right_;
  accepted += right_;
  ++row_;
  tokens_.push_back(token);
  ++generated_tokens;
  if (lookup_) lookup_->push(token);
  lap();
  times.push_back(worked_);
  worked_ = 0;
  state_ = notes.empty() ? State::Rejoin : State::Told;
  return notes.empty() ? Step::Token : Step::Noted;
}

// After the consumer took a token. Token: there is nothing to show yet.
Answer::Step Answer::after_token() {
  if (options_.cancelled()) return end("cancelled");
  if (options_.guide && options_.guide->finished()) return end_whole();
  if (!options_.repetition && repetition_.push(token)) {
    notes.push_back(
        {"repetition", "the answer repeats itself and is ended after " + std::to_string(generated_tokens) + " tokens"});
    return end("repetition");
  }
  if (right_ && row_ < row_count_) {
    state_ = State::Sample;
    return Step::Token;
  }
  return advance();
}

// The rows are used up: the next forward.
Answer::Step Answer::advance() {
  const int64_t length = int64_t(tokens_.size());
  if (options_.max_tokens && generated_tokens == *options_.max_tokens) return cut("length");
  if (lookup_) lookup_->feedback(proposed_.size(), matched_);
  proposed_.clear();
  if (length >= rows_.engine.info.max_context) {
    auto window = options_.slide({tokens_.end() - std::ptrdiff_t(generated_tokens), tokens_.end()});
    if (!window) return cut("context_full");
    tokens_ = std::move(*window);  // the draft still knows, and may quote, what was dropped
    state_ = State::StartPrefill;
    lap();
    return notes.empty() ? Step::Token : Step::Noted;
  }
  if (wants_long() != rows_.is_long) {
    state_ = State::StartPrefill;
    return Step::Token;
  }
  if (lookup_) propose();
  ++forwards;
  drafted += int64_t(proposed_.size());
  std::vector<int64_t> given{tokens_.back()};
  given.insert(given.end(), proposed_.begin(), proposed_.end());
  logits_ = rows_.forward(given.data(), int64_t(given.size()), length - 1, rows_.is_long);
  row_ = matched_ = 0;
  row_count_ = given.size();
  state_ = State::Sample;
  return Step::Token;
}

// A draft for the next forward: what the guide forces, else what the lookup finds, as far as the guide allows.
void Answer::propose() {
  const int64_t limit = draft_limit();
  if (options_.guide) proposed_ = options_.guide->forced();
  if (int64_t(proposed_.size()) > limit) proposed_.resize(size_t(std::max<int64_t>(limit, 0)));
  if (proposed_.empty()) proposed_ = lookup_->propose(limit);
  if (options_.guide) proposed_.resize(options_.guide->accepts(proposed_));
}

// Most draft tokens: all rows of a forward have one LongRoPE regime, and no token is sampled past a limit.
int64_t Answer::draft_limit() const {
  const auto& info = rows_.engine.info;
  const int64_t length = int64_t(tokens_.size());
  int64_t limit = std::min(info.max_chunk - 1, info.max_context - length - 1);
  if (info.back) limit = std::min(limit, *info.back);  // all of them may be rejected
  if (options_.max_tokens) limit = std::min(limit, *options_.max_tokens - generated_tokens - 1);
  if (info.original_context && !rows_.is_long) limit = std::min(limit, *info.original_context - length);
  return limit;
}

}  // namespace phi3mobile
