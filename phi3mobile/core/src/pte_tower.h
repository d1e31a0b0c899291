// A bundle's vision.pte as the tower of a session.
#pragma once

#include "bundle.h"
#include "phi3mobile.h"
#include "session/tower.h"

#include <initializer_list>
#include <string>

namespace phi3mobile {

// Loaded when the first picture is looked at: a conversation without neither waits nor pays for it.
class PteTower : public Tower {
 public:
  // cache: folder for packed weights; "" for none.
  PteTower(const Bundle& bundle, std::string cache);
  ~PteTower() override { p3m_close(model_); }

  void encode(const float* view, float* patches) override;
  void project(const float* merged, int64_t count, float* embedded) override;

 private:
  void open();
  void run(const char* method, const float* given, std::initializer_list<int64_t> sizes, float* to, int64_t count);

  std::string program_, hash_, cache_;
  p3m_model* model_ = nullptr;
};

}  // namespace phi3mobile
