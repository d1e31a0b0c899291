// The rows of the KV cache, known by their tokens: text and pictures through one engine.
#pragma once

#include "session/engine.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace phi3mobile {

// What stands where tokens are below 0: rows of pictures.
class Sight {
 public:
  virtual ~Sight() = default;
  // One piece of the work that these tokens need before rows() can give theirs, and what to say of it, "" for nothing; none:
  // it is all done.
  virtual std::optional<std::string> look(const int64_t* tokens, int64_t count) = 0;
  // Embeddings float32 [count, hidden] of tokens that are all below 0, valid until the next call.
  virtual const float* rows(const int64_t* tokens, int64_t count) = 0;
};

// What the engine's KV cache holds: row i was computed from tokens[i]. True also after a failed or stopped run.
struct Rows {
  explicit Rows(Engine& engine) : engine(engine) {}
  // Engine::forward and Engine::prefill, recorded.
  const float* forward(const int64_t* given, int64_t count, int64_t position, bool is_long);
  const float* prefill(const int64_t* given, int64_t count, int64_t position, bool is_long);
  // Length of the prefix that `given` shares with the cache.
  int64_t common(const std::vector<int64_t>& given) const;
  // Whether a forward may go back to a position: an evicting KV cache keeps only so much behind the farthest row.
  bool reaches(int64_t position) const;
  void clear();

  Engine& engine;
  Sight* sight = nullptr;  // null: the model sees no pictures
  std::vector<int64_t> tokens;
  bool is_long = false;
  int64_t farthest = 0;  // end of the farthest row written since row 0 was
  double engine_s = 0;   // seconds in forwards so far

 private:
  using OfText = const float* (Engine::*)(const int64_t*, int64_t, int64_t, bool);
  using OfRows = const float* (Engine::*)(const float*, int64_t, int64_t, bool);
  template <class Join>
  const float* in_parts(
      const int64_t* given, int64_t count, int64_t position, bool with_long, OfText of_text, OfRows of_rows, const Join& join);

  std::vector<float> joined_;
};

}  // namespace phi3mobile
