// A bundle's .pte as the engine of a session.
#pragma once

#include "base/json.h"
#include "bundle.h"
#include "phi3mobile.h"
#include "session/engine.h"

#include <memory>
#include <string>

namespace phi3mobile {

// Of the options of p3m_session_open; 0 and "" where they are not there. InputError: of another kind.
int64_t integer_option(const Json& options, const char* name);
std::string text_option(const Json& options, const char* name);

class PteEngine : public Engine {
 public:
  // options: see p3m_session_open. InputError: the runtime can't run the bundle, or this machine lacks the memory.
  static std::unique_ptr<PteEngine> open(const Bundle& bundle, const Json& options);
  ~PteEngine() override { p3m_close(model_); }

  const float* forward(const int64_t* tokens, int64_t count, int64_t position, bool is_long) override;
  const float* forward_rows(const float* rows, int64_t count, int64_t position, bool is_long) override;
  const float* prefill(const int64_t* tokens, int64_t count, int64_t position, bool is_long) override;
  const float* prefill_rows(const float* rows, int64_t count, int64_t position, bool is_long) override;
  p3m_model* model() const { return model_; }

 private:
  PteEngine(const EngineInfo& info, p3m_model* model) : Engine(info), model_(model) {}
  int64_t marked(int64_t position, int64_t count, bool is_long) const;
  const float* logits(int64_t count, int failed) const;

  p3m_model* model_;
};

}  // namespace phi3mobile
