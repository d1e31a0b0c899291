// An engine, and a tower, of the host application: functions in C.
#pragma once

#include "base/error.h"
#include "phi3mobile_session.h"
#include "session/engine.h"
#include "session/tower.h"

#include <stdexcept>
#include <vector>

namespace phi3mobile {

// Calls a function of the host's. std::runtime_error: what it wrote where it failed.
template <class Function, class... Given>
void host_call(Function function, Given... given) {
  char error[512] = "";
  if (!function(given..., error, sizeof error)) return;
  error[sizeof error - 1] = 0;
  throw std::runtime_error(*error ? error : "the application's engine failed without saying why");
}

class HostEngine : public Engine {
 public:
  // tower: null where it sees no pictures.
  HostEngine(const EngineInfo& info, const p3m_engine& host, const p3m_tower* tower)
      : Engine(info), host_(host), forward_rows_(tower ? tower->forward_rows : nullptr) {}
  ~HostEngine() override {
    if (host_.close) host_.close(host_.user);
  }

  const float* forward(const int64_t* tokens, int64_t count, int64_t position, bool is_long) override {
    logits_.resize(size_t(count) * size_t(info.vocab));
    host_call(host_.forward, host_.user, tokens, count, position, int(all_long(position, count, is_long)), logits_.data());
    return logits_.data();
  }

  const float* forward_rows(const float* rows, int64_t count, int64_t position, bool is_long) override {
    logits_.resize(size_t(count) * size_t(info.vocab));
    host_call(forward_rows_, host_.user, rows, count, position, int(all_long(position, count, is_long)), logits_.data());
    return logits_.data();
  }

  void reset() override {
    if (host_.reset) host_.reset(host_.user);
  }

 private:
  p3m_engine host_;
  decltype(p3m_tower::forward_rows) forward_rows_;
  std::vector<float> logits_;
};

class HostTower : public Tower {
 public:
  // InputError: a function that is not there.
  HostTower(TowerInfo info, const p3m_engine& engine, const p3m_tower& host)
      : Tower(std::move(info)), host_(host), user_(engine.user) {
    if (!host_.forward_rows || !host_.encode || !host_.project) {
      throw InputError("the tower lacks forward_rows, encode or project: give the functions");
    }
  }

  void encode(const float* view, float* patches) override { host_call(host_.encode, user_, view, patches); }
  void project(const float* merged, int64_t count, float* embedded) override {
    host_call(host_.project, user_, merged, count, embedded);
  }

 private:
  p3m_tower host_;
  void* user_;
};

}  // namespace phi3mobile
