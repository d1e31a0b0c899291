#include "base/border.h"

#include "base/utf8.h"

#include <algorithm>
#include <cstring>

namespace phi3mobile {

void tell(std::string line, char* error, size_t error_size) {
  if (!error || error_size == 0) return;
  std::replace(line.begin(), line.end(), '\n', ' ');
  line.resize(std::min(line.size(), error_size - 1));
  line.resize(invalid_utf8(line));
  std::memcpy(error, line.c_str(), line.size() + 1);
}

}  // namespace phi3mobile
