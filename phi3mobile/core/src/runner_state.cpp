// A program's experts, and its KV cache to a file and back.
#include "base/border.h"
#include "phi3mobile_session.h"
#include "program.h"
#include "state.h"

#include <algorithm>
#include <cstdio>

int p3m_open_experts(p3m_model* model, const char* path, uint64_t memory, int used, char* error, size_t error_size) {
  std::string wrong;
  model->experts = phi3mobile::Experts::open(path, memory, used, &wrong);
  if (error && error_size) std::snprintf(error, error_size, "%s", wrong.c_str());
  return model->experts ? 0 : -1;
}

int64_t p3m_expert_statistics(const p3m_model* model, int64_t* values, int64_t capacity) {
  if (!model->experts) return 0;
  const auto s = model->experts->file().statistics();
  const int64_t all[] = {s.hits, s.misses, s.bytes_read, s.stall_us, s.slots, s.mapped, s.bytes_all, s.slot_bytes};
  const int64_t count = sizeof all / sizeof *all;
  std::copy(all, all + std::min(count, capacity), values);
  return count;
}

namespace {

// The memory of the method that holds the KV cache.
phi3mobile::Memory memory_of(const p3m_model& model) {
  phi3mobile::Memory memory;
  for (const phi3mobile::Method& method : model.methods) {
    if (method.name != phi3mobile::kForward && method.name != phi3mobile::kDecode) continue;
    for (const auto& span : method.spans) memory.emplace_back(span.data(), span.size());
  }
  return memory;
}

}  // namespace

int64_t p3m_save_state(p3m_model* model, const char* path, const char* about, char* error, size_t error_size) {
  return phi3mobile::guarded(
      int64_t(-1), error, error_size, [&] { return phi3mobile::save_state(path, about, memory_of(*model)); });
}

int p3m_load_state(p3m_model* model, const char* path, char* error, size_t error_size) {
  return int(phi3mobile::guarded(
      int64_t(-1), error, error_size, [&] { return phi3mobile::load_state(path, memory_of(*model)), int64_t(0); }));
}

int64_t p3m_state_about(const char* path, char* about, size_t capacity, char* error, size_t error_size) {
  return phi3mobile::guarded(int64_t(-1), error, error_size, [&] {
    const std::string text = phi3mobile::state_about(path);
    if (about && capacity) std::snprintf(about, capacity, "%s", text.c_str());
    return int64_t(text.size());
  });
}
