#include "attention_isa.h"
#include "processor.h"

#include <atomic>
#include <cstring>

namespace phi3mobile {
namespace {

const Loops* find_loops(const char* isa) {
  const auto fits = [&](const char* name) { return isa == nullptr || std::strcmp(isa, name) == 0; };
#if defined(__x86_64__)
  if (has_avx512() && fits("avx512")) return &avx512::loops;
  if (has_avx2() && fits("avx2")) return &avx2::loops;
#endif
  return fits("baseline") ? &baseline::loops : nullptr;
}

std::atomic<const Loops*> chosen{find_loops(nullptr)};

}  // namespace

const Loops& loops() { return *chosen.load(std::memory_order_relaxed); }

bool use_isa(const char* isa) {
  const Loops* found = find_loops(isa);
  if (found) chosen = found;
  return found != nullptr;
}

const char* used_isa() {
  const Loops* used = chosen;
#if defined(__x86_64__)
  if (used == &avx512::loops) return "avx512";
  if (used == &avx2::loops) return "avx2";
#elif defined(__aarch64__)
  if (used == &baseline::loops) return "neon";
#endif
  return used == &baseline::loops ? "baseline" : "";
}

}  // namespace phi3mobile
