// Words to ids by a vocabulary's merges, remembered from call to call.
#pragma once

#include "text/tables.h"

#include <cstdint>
#include <mutex>
#include <string_view>
#include <vector>

namespace phi3mobile {

class WordModel {
 public:
  virtual ~WordModel() = default;
  // Appends the ids of words, in order. Any thread may call.
  void encode(const std::vector<std::string_view>& words, std::vector<int64_t>& ids) const;

 protected:
  // The ids of one word.
  virtual std::vector<int32_t> spell(std::string_view word) const = 0;

 private:
  mutable std::mutex mutex_;
  mutable Words known_;
};

}  // namespace phi3mobile
