// What runs the model: a decoder with its KV cache inside.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace phi3mobile {

struct EngineInfo {
  int64_t vocab = 0;
  int64_t max_context = 0;
  int64_t max_chunk = 0;                    // tokens of one forward
  std::optional<int64_t> original_context;  // where LongRoPE switches
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
  virtual void reset() {}

  // The KV cache to and from a file that is open for this alone, at its place; the runtime's version is part of the state.
  virtual bool keeps_state() const { return false; }
  virtual std::string runtime() const { return ""; }

  const EngineInfo info;
};

}  // namespace phi3mobile
