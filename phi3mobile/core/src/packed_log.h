// What XNNPACK's log says about the file of packed weights: the one place that knows its words.
// The backend falls back to the heap without an error, and its get_option gives back the settings, not what became of them: up
// to ExecuTorch 1.5 only the log tells. These lines are those of kReadFrom (XNNWeightsCache.cpp). To build on another version
// read them again there, then change kReadFrom; tests/engines/test_native.py looks for them in the installed library.
#pragma once

#include <string_view>

namespace phi3mobile::packed_log {

inline constexpr std::string_view kReadFrom = "1.5.";
inline constexpr std::string_view kReused = "Loaded packed weight cache";  // starts a note: the file was mapped
inline constexpr std::string_view kCreated = "Saved packed weight index";  // starts a note: the file was written
inline constexpr std::string_view kHeld = "flock(";  // starts an error: another process has the file open, readers lock it too

static_assert(std::string_view(P3M_RUNTIME_VERSION).substr(0, kReadFrom.size()) == kReadFrom,
    "another ExecuTorch: check the log lines of packed_log.h against its XNNWeightsCache.cpp");

}  // namespace phi3mobile::packed_log
