// What was given wrong: one line that says what was given, what is allowed and what to do. The C border turns it into text.
#pragma once

#include <stdexcept>
#include <string>

namespace phi3mobile {

class InputError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace phi3mobile
