// What runs the model: a decoder with its KV cache inside.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>

namespace phi3mobile {

struct EngineInfo {
  int64_t vocab = 0;
  int64_t max_context = 0;
  int64_t max_chunk = 0;                    // tokens of one forward
  std::optional<int64_t> original_context;  // where LongRoPE switches
  int64_t hidden = 0;                       // of rows in the place of tokens; 0: it takes none
  std::optional<int64_t> back;              // how far a forward may go back from the farthest row; none: anywhere
};

class Engine {
 public:
  explicit Engine(const EngineInfo& info) : info(info) {}
  virtual ~Engine() = default;
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Runs tokens at position, position + 1, ...; logits float32 [count, vocab], valid until the next call. is_long: these rows
  // get LongRoPE's long factors. std::runtime_error if it fails.
  virtual const float* forward(const int64_t* tokens, int64_t count, int64_t position, bool is_long) = 0;
  // The same of rows float32 [count, hidden] in the place of embedded tokens: a picture's.
  virtual const float* forward_rows(const float*, int64_t, int64_t, bool) {
    throw std::runtime_error("this engine takes tokens only, no rows of pictures");
  }
  // As these, but logits float32 [vocab] of the last one alone, which costs less where a program can.
  virtual const float* prefill(const int64_t* tokens, int64_t count, int64_t position, bool is_long) {
    return forward(tokens, count, position, is_long) + (count - 1) * info.vocab;
  }
  virtual const float* prefill_rows(const float* rows, int64_t count, int64_t position, bool is_long) {
    return forward_rows(rows, count, position, is_long) + (count - 1) * info.vocab;
  }
  virtual void reset() {}

  // Whether the rows of a forward get the long factors: asked for, or because it ends past the switch.
  bool all_long(int64_t position, int64_t count, bool is_long) const {
    return info.original_context && (is_long || position + count > *info.original_context);
  }

  const EngineInfo info;
};

}  // namespace phi3mobile
