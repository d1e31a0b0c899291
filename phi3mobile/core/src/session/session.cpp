#include "session/session.h"

#include "base/error.h"
#include "session/content.h"
#include "session/request.h"
#include "session/statistics.h"
#include "text/chat.h"

#include <algorithm>

namespace phi3mobile {

namespace {

[[noreturn]] void sees_none(const EngineInfo& info) {
  throw InputError(info.hidden
                       ? "a picture was given, and the application's engine reads text only: give it a tower, or leave it out"
                       : "a picture was given, and this model reads text only: export a model that sees, or leave it out");
}

}  // namespace

Session::Session(Parts parts, std::unique_ptr<Engine> engine, std::unique_ptr<Pictures> pictures)
    : parts_(std::move(parts)), engine_(std::move(engine)), pictures_(std::move(pictures)), rows_(*engine_) {
  rows_.sight = pictures_.get();
}

int64_t Session::picture(const Pixels& pixels) {
  if (!pictures_) sees_none(engine_->info);
  return pictures_->add(pixels);
}

void Session::keep_features(std::string folder, const std::string& runtime) {
  if (!pictures_) throw InputError("this session sees no pictures: it has no features to keep; leave the folder out");
  pictures_->keep_in(std::move(folder), runtime);
}

std::vector<int64_t> Session::encode(const Json::Array& messages, const Tools* tools) const {
  if (parts_.segments.is_null()) {
    throw InputError(
        parts_.template_given
            ? "this bundle's chat template is not regular enough for plain segments: render it elsewhere and give a prompt"
            : "this bundle has no chat template: it completes text only, give a prompt");
  }
  const auto seen = [&](const Json::Array& all) {
    return Seen(all).encode(
        parts_.segments, *parts_.tokenizer, [&](const Json& image) { return pictures_->ids(image.integer()); });
  };
  if (!tools) {
    const Json::Array said = results_as_messages(messages);
    return pictures_ ? seen(said) : parts_.tokenizer->encode(spans(parts_.segments, said));
  }
  const auto [told, mark] = tools->told(messages, !parts_.segments["system"].is_null(), Tools::known_to(*parts_.tokenizer));
  if (pictures_ && mark.empty()) return seen(told);
  const auto parts = spans(parts_.segments, told);
  return parts_.tokenizer->encode(mark.empty() ? parts : marked_spans(parts, mark));
}

void Session::too_long(int64_t length, const std::string& what, const std::vector<int64_t>& tokens) const {
  const int64_t limit = engine_->info.max_context;
  std::string todo = "shorten it, drop older messages, or export with a larger context";
  const auto seen = std::count_if(tokens.begin(), tokens.end(), [](int64_t token) { return token < 0; });
  if (seen) {
    const auto fits = pictures_->smaller(tokens, limit - 1);
    todo = std::to_string(seen) + " are of pictures, " +
           (fits ? "num_crops " + std::to_string(*fits) + " would fit" : "show fewer of them");
  }
  throw InputError(what + " " + std::to_string(length) + " tokens; the context holds " + std::to_string(limit) +
                   ", of which the answer needs at least 1: " + todo);
}

void Session::start(const Json& request) {
  check_keys(request);
  const bool slide = slides(request), raw = !request["prompt"].is_null();
  const Json grammar = grammar_asked(request);
  std::unique_ptr<Window> window;
  std::unique_ptr<Tools> tools;
  if (!request["tools"].is_null()) {
    if (raw) throw InputError("tools were given with a prompt: they belong to messages");
    tools = std::make_unique<Tools>(request["tools"]);
  }
  AnswerOptions options;
  if (raw) {
    if (!request["prompt"].is_string() || request["prompt"].string().empty())
      throw InputError("the prompt is empty; write some text");
    options.prompt = parts_.tokenizer->encode(request["prompt"].string());
  } else {
    auto messages = checked_messages(request["messages"]);
    const bool shown = std::any_of(messages.begin(), messages.end(), [](const Json& one) { return has_image(one["content"]); });
    if (shown && !pictures_) sees_none(engine_->info);
    if (slide) {
      window = std::make_unique<Window>(
          std::move(messages), [this, known = tools.get()](const auto& kept) { return encode(kept, known); },
          engine_->info.max_context, [this](const auto& tokens) { return rows_.common(tokens); });
      auto tokens = window->tokens({});
      if (!tokens) too_long(int64_t(window->smallest().size()), "the system message and the last turn alone have");
      options.prompt = std::move(*tokens);
    } else {
      options.prompt = encode(messages, tools.get());
    }
  }
  auto guide = grammar.is_null() ? nullptr : guide_of(grammar);
  options.sampling = chosen_sampling(request, guide ? Sampling() : parts_.sampling);
  options.max_tokens = max_tokens(request);
  options.eos = parts_.eos;
  options.lookup = flag(request, "lookup");
  options.repetition = flag(request, "repetition");
  const auto stop = stops(request);
  if (options.prompt.empty()) throw InputError("the prompt has no tokens; write some text");
  if (int64_t(options.prompt.size()) >= engine_->info.max_context) {
    too_long(int64_t(options.prompt.size()), "the prompt has", options.prompt);
  }
  options.repetition |= guide != nullptr;  // where a guide knows the answer's end, a repeated block may be what was asked for
  if (tools && has_llguidance()) guide = guide_of(tools->grammar());
  if (guide) {
    // A slid window keeps the last turn and the answer: the answer has all the other room.
    const size_t kept = window ? window->smallest().size() : options.prompt.size();
    const int64_t room = engine_->info.max_context - int64_t(kept);
    guide->start(std::min(room, options.max_tokens.value_or(room)), !raw);
    options.guide = std::move(guide);
  }
  options.cancelled = [this] { return cancelled_.load(); };
  if (window) {
    options.slide = [this](const std::vector<int64_t>& answer) {
      const int64_t before = window_->dropped;
      auto tokens = window_->tokens(answer);
      if (window_->dropped > before) note_dropped();
      return tokens;
    };
  }
  cancelled_ = false;
  window_ = std::move(window);
  tools_ = std::move(tools);
  words_ = tools_ ? std::make_unique<CallGate>() : nullptr;
  pending_.clear();
  answer_ = std::make_unique<Answer>(rows_, std::move(options));
  if (window_ && window_->dropped) note_dropped();
  gate_ = std::make_unique<StopGate>(stop);
  text_ = std::make_unique<TextStream>(parts_.tokenizer->stream(!raw));
  finished_ = false;
}

std::unique_ptr<Guide> Session::guide_of(const Json& grammar) {
  if (!vocabulary_) vocabulary_ = std::make_shared<const GuideWords>(parts_.tokenizer);
  return std::make_unique<Guide>(grammar, vocabulary_);
}

void Session::note_dropped() {
  answer_->notes.push_back(
      {"window", "context full: the oldest " + std::to_string(window_->dropped) + " messages are left out"});
}

Event Session::next() {
  if (!pending_.empty()) {
    Event event = std::move(pending_.front());
    pending_.pop_front();
    return event;
  }
  if (finished_) return {Event::Kind::Done, last_};
  try {
    for (;;) {
      switch (answer_->next()) {
        case Answer::Step::Noted: {
          Json note{Json::Object()};
          note.set("kind", answer_->notes.front().kind);
          note.set("message", answer_->notes.front().message);
          answer_->notes.pop_front();
          return {Event::Kind::Note, note.dump()};
        }
        case Answer::Step::Prefilled:
          if (answer_->progress.done < answer_->progress.total) {
            Json progress{Json::Object()};
            progress.set("done", answer_->progress.done);
            progress.set("total", answer_->progress.total);
            return {Event::Kind::Progress, progress.dump()};
          }
          break;
        case Answer::Step::Token: {
          std::string piece = shown(gate_->push(text_->push(answer_->token)));
          if (gate_->hit()) return ended(std::move(piece));
          if (!piece.empty()) return {Event::Kind::Text, std::move(piece)};
          break;
        }
        case Answer::Step::End: {
          std::string piece = gate_->push(text_->finish());
          piece += gate_->finish();
          return ended(shown(std::move(piece)));
        }
      }
    }
  } catch (...) {
    answer_->finish_reason = "error";
    pending_.clear();
    done();
    throw;
  }
}

// The last piece of text, or the calls; Done follows.
Event Session::ended(std::string piece) {
  std::vector<Json> calls;
  if (words_ && !words_->opened()) {
    piece = words_->finish();
    calls = tools_->read(piece);
  }
  if (gate_->hit()) answer_->finish_reason = "stop_string";
  if (!calls.empty()) answer_->finish_reason = "tool_calls";
  const Event last = done();
  if (calls.empty()) {
    if (piece.empty()) return last;
    return {Event::Kind::Text, std::move(piece)};
  }
  for (const Json& call : calls) pending_.push_back({Event::Kind::ToolCall, call.dump()});
  return next();
}

Event Session::done() {
  finished_ = true;
  last_ = statistics_of(*answer_, window_ ? window_->dropped : 0).dump();
  return {Event::Kind::Done, last_};
}

void Session::reset() {
  finished_ = true;
  pending_.clear();
  rows_.clear();
}

}  // namespace phi3mobile
