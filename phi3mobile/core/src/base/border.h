// The C border: no exception crosses it, a failure is one line of whole characters.
#pragma once

#include "base/error.h"

#include <cstddef>
#include <exception>
#include <new>
#include <string>

namespace phi3mobile {

// Writes a line into a caller's buffer, as much as fits.
void tell(std::string line, char* error, size_t error_size);

// What `work` gives; `failed` and one line in error where it throws.
template <class Result, class Work>
Result guarded(Result failed, char* error, size_t error_size, Work work) {
  try {
    return work();
  } catch (const std::bad_alloc&) {
    tell("there is not enough memory: close programs or use a smaller model", error, error_size);
  } catch (const std::exception& wrong) {
    tell(wrong.what(), error, error_size);
  } catch (...) {
    tell("an unknown error", error, error_size);
  }
  return failed;
}

// What was given, which must not be null.
template <class T>
T* required(T* given, const char* name) {
  if (!given) throw InputError(std::string(name) + " is null: give one");
  return given;
}

}  // namespace phi3mobile
