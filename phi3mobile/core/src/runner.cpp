#include "phi3mobile.h"

#include "attention.h"
#include "base/border.h"
#include "experts.h"
#include "packed_log.h"
#include "phi3mobile_session.h"
#include "state.h"
#include "tiles.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>
#if defined(__linux__)
#include <sched.h>
#endif

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/core/hierarchical_allocator.h>
#include <executorch/runtime/kernel/operator_registry.h>
#include <executorch/runtime/platform/platform.h>
#include <executorch/runtime/platform/runtime.h>

// The runtime exports these without a header for them.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  size_t get_thread_count() const;
  bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool
extern "C" bool cpuinfo_initialize(void);
extern "C" uint32_t cpuinfo_get_cores_count(void);

namespace {

using executorch::extension::Module;
using executorch::runtime::Error;
using executorch::runtime::EValue;

// The runtime tells what went wrong, and what became of the packed weights, only in its log.
struct Log {
  std::vector<std::string> errors, notes;
};
thread_local Log* listening = nullptr;

// Messages outside our calls go to stderr, errors only.
void hear(et_timestamp_t, et_pal_log_level_t level, const char*, const char*, size_t, const char* message, size_t length) {
  const bool error = level == kError || level == kFatal;
  if (listening) {
    auto& to = error ? listening->errors : listening->notes;
    if (to.size() < 64) to.emplace_back(message, length);
  } else if (error) {
    std::fprintf(stderr, "executorch: %.*s\n", int(length), message);
  }
}

// The first few different messages, without the dump of arguments that follows a failed operator.
std::string first_of(const std::vector<std::string>& messages) {
  std::string text;
  for (size_t i = 0; i < messages.size() && i < 3; ++i) {
    if (messages[i].rfind("arg ", 0) == 0) break;
    if (i == 0 || messages[i] != messages[i - 1]) text += (text.empty() ? "" : "; ") + messages[i];
  }
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

class Listen {
 public:
  explicit Listen(Log& log) : before_(listening) {
    // One logger a process: ExecuTorch's Python bindings put in theirs when they are imported, also after us.
    if (executorch::runtime::get_pal_impl()->emit_log_message != hear) {
      executorch::runtime::register_pal(executorch::runtime::PalImpl::create(hear, __FILE__));
    }
    log = Log{};
    listening = &log;
  }
  ~Listen() { listening = before_; }

 private:
  Log* before_;
};

uint32_t usable_cores() {
  uint32_t cores = cpuinfo_initialize() ? cpuinfo_get_cores_count() : std::thread::hardware_concurrency();
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) cores = std::min<uint32_t>(cores, CPU_COUNT(&allowed));
#endif
  return std::max<uint32_t>(cores, 1);
}

std::atomic<int> open_models{0};

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

}  // namespace

namespace {

// A method that computes, and its planned memory, which is ours, from calloc: a KV cache costs only the pages that were
// written, and starts as zeros.
struct Method {
  std::string name;
  std::vector<std::unique_ptr<void, Free>> buffers;
  std::vector<executorch::runtime::Span<uint8_t>> spans;
  std::unique_ptr<executorch::runtime::HierarchicalAllocator> planned;
};

// What a program may compute: a decoder, or one behind its embedding that takes rows of pictures, too, or a tower for these.
constexpr const char* kForward = "forward";
constexpr int64_t kLastRow = int64_t(1) << 31;  // in input_pos (engines/base.py)
constexpr const char* kEmbed = "token_embedding";
constexpr const char* kDecode = "text_decoder";
constexpr const char* kMethods[] = {kForward, kEmbed, kDecode, "encode", "project"};

}  // namespace

struct p3m_model {
  std::unique_ptr<phi3mobile::Experts> experts;
  std::unique_ptr<Module> module;
  std::vector<Method> methods;
  Log log;
  std::string error, packed_reason;
  int packed = P3M_PACKED_HEAP;
  bool takes_last_row = false;  // the program knows kLastRow
  const float* logits = nullptr;
  int64_t count = 0, vocab = 0;
};

namespace {

int fail(p3m_model& model, const char* what, Error error) {
  model.error = std::string(what) + ": error " + std::to_string(int(error));
  if (!model.log.errors.empty()) model.error += ": " + first_of(model.log.errors);
  return int(error);
}

bool has(const p3m_model& model, const char* name) {
  return std::any_of(model.methods.begin(), model.methods.end(), [&](const Method& m) { return m.name == name; });
}

int plan_memory(p3m_model& model, Method& method) {
  const auto meta = model.module->method_meta(method.name);
  if (!meta.ok()) return fail(model, ("no method " + method.name).c_str(), meta.error());
  for (size_t i = 0; i < meta->num_memory_planned_buffers(); ++i) {
    const auto size = meta->memory_planned_buffer_size(i);
    if (!size.ok()) return fail(model, "planned memory", size.error());
    method.buffers.emplace_back(std::calloc(size_t(*size) + 1, 1));
    if (!method.buffers.back()) return fail(model, "no memory for activations and KV cache", Error::MemoryAllocationFailed);
    method.spans.emplace_back(static_cast<uint8_t*>(method.buffers.back().get()), size_t(*size));
  }
  method.planned = std::make_unique<executorch::runtime::HierarchicalAllocator>(
      executorch::runtime::Span<executorch::runtime::Span<uint8_t>>(method.spans.data(), method.spans.size()));
  return 0;
}

int load_methods(p3m_model& model) {
  const auto names = model.module->method_names();
  if (!names.ok()) return fail(model, "can't read the program's methods", names.error());
  for (const char* name : kMethods) {
    if (names->count(name)) model.methods.emplace_back().name = name;
  }
  if (model.methods.empty()) model.methods.emplace_back().name = kForward;  // which fails by that name
  for (Method& method : model.methods) {
    if (const int failed = plan_memory(model, method)) return failed;
    const Error error = model.module->load_method(method.name, method.planned.get());
    if (error != Error::Ok) return fail(model, ("can't load method " + method.name).c_str(), error);
  }
  return 0;
}

// What became of the packed weights, which only the log tells (packed_log.h).
void note_packed(p3m_model& model) {
  const auto said = [&](std::string_view start) {
    return std::any_of(model.log.notes.begin(), model.log.notes.end(), [&](const auto& n) { return n.rfind(start, 0) == 0; });
  };
  if (!model.log.errors.empty()) {
    const bool held = model.log.errors.front().rfind(phi3mobile::packed_log::kHeld, 0) == 0;
    model.packed_reason = held ? "another process has this model open" : first_of(model.log.errors);
  } else if (said(phi3mobile::packed_log::kReused)) {
    model.packed = P3M_PACKED_REUSED;
  } else if (said(phi3mobile::packed_log::kCreated)) {
    model.packed = P3M_PACKED_CREATED;
  } else {
    model.packed = P3M_PACKED_REUSED;  // another model of this process has the file open, and its cache is shared
  }
}

int open_model(p3m_model& model, const char* pte_path, const char* packed_cache_path) {
  Listen listen(model.log);
  model.module = std::make_unique<Module>(pte_path, Module::LoadMode::Mmap);
  executorch::runtime::BackendOptions<2> xnnpack;
  executorch::runtime::LoadBackendOptionsMap options;
  Error error = Error::Ok;
  if (packed_cache_path) {
    (void)xnnpack.set_option("weight_cache_enabled", true);
    (void)xnnpack.set_option("packed_cache_path", packed_cache_path);
    error = options.set_options("XnnpackBackend", xnnpack.view());
  }
  if (error == Error::Ok) error = model.module->load(options);
  if (error != Error::Ok) return fail(model, "can't load the program", error);
  if (const int failed = load_methods(model)) return failed;
  const auto names = model.module->method_names();
  model.takes_last_row = names.ok() && names->count("get_last_row");
  const bool packs = std::any_of(model.methods.begin(), model.methods.end(), [&](const Method& method) {
    const auto meta = model.module->method_meta(method.name);
    return meta.ok() && meta->uses_backend("XnnpackBackend");
  });
  if (!packs) {
    model.packed = P3M_PACKED_NONE;
  } else if (packed_cache_path) {
    note_packed(model);
  }
  return 0;
}

}  // namespace

p3m_model* p3m_open(const char* pte_path, const char* packed_cache_path, int threads, char* error, size_t error_size) {
  executorch::runtime::runtime_init();
  auto model = std::make_unique<p3m_model>();
  const Listen quiet(model->log);  // counting cores is told, too
  if (packed_cache_path && std::strlen(packed_cache_path) > 255) {
    model->error = "the path of the packed weights is longer than 255 bytes";
  } else if (p3m_set_threads(threads)) {
    model->error = "open models run on a pool of " + std::to_string(p3m_threads()) + " threads: close them, or ask for as many";
  } else if (open_model(*model, pte_path, packed_cache_path) == 0) {
    ++open_models;
    return model.release();
  }
  if (error && error_size) std::snprintf(error, error_size, "%s", model->error.c_str());
  return nullptr;
}

namespace {

using executorch::aten::ScalarType;
using executorch::aten::SizesType;

// Runs a method that gives one float32 tensor, kept in `out` until the next call of the method.
int compute(p3m_model& model, const char* name, const std::vector<EValue>& inputs, EValue& out) {
  if (!has(model, name)) return fail(model, ("the program has no method " + std::string(name)).c_str(), Error::InvalidArgument);
  const auto result = model.module->execute(name, inputs);
  if (!result.ok()) return fail(model, name, result.error());
  if (result->size() != 1 || !result->at(0).isTensor() || result->at(0).toTensor().scalar_type() != ScalarType::Float) {
    return fail(model, (std::string(name) + " gave no float32 tensor").c_str(), Error::InvalidProgram);
  }
  out = result->at(0);
  return 0;
}

auto token_input(const int64_t* tokens, int64_t count) {
  return executorch::extension::from_blob(const_cast<int64_t*>(tokens), {SizesType(1), SizesType(count)}, ScalarType::Long);
}

// input: tokens [1, count] or rows [1, count, hidden], as the method takes them. last: only the last row of logits is wanted.
int decode(p3m_model& model, const char* name, const EValue& input, int64_t count, int64_t position, bool last) {
  if (last && model.takes_last_row) position |= kLastRow;
  const auto at = executorch::extension::from_blob(&position, {SizesType(1)}, ScalarType::Long);
  phi3mobile::running_experts = model.experts.get();
  if (model.experts) model.experts->error.clear();
  EValue result;
  model.logits = nullptr;
  const int failed = compute(model, name, {input, EValue(at)}, result);
  phi3mobile::running_experts = nullptr;
  if (failed && model.experts && !model.experts->error.empty()) model.error = "experts: " + model.experts->error;
  if (failed) return failed;
  const auto out = result.toTensor();
  if (out.dim() != 3 || out.size(1) != count) {
    return fail(model, "forward gave logits of another shape", Error::InvalidProgram);
  }
  model.vocab = out.size(2);
  model.count = last ? 1 : count;
  model.logits = out.const_data_ptr<float>() + (count - model.count) * model.vocab;
  return 0;
}

int decode_tokens(p3m_model& model, const int64_t* tokens, int64_t count, int64_t position, bool last) {
  Listen listen(model.log);
  const auto in = token_input(tokens, count);
  if (!has(model, kEmbed)) return decode(model, kForward, EValue(in), count, position, last);
  EValue rows;
  if (const int failed = compute(model, kEmbed, {EValue(in)}, rows)) return failed;
  return decode(model, kDecode, rows, count, position, last);
}

int decode_rows(p3m_model& model, const float* rows, int64_t count, int64_t hidden, int64_t position, bool last) {
  Listen listen(model.log);
  const auto in = executorch::extension::from_blob(
      const_cast<float*>(rows), {SizesType(1), SizesType(count), SizesType(hidden)}, ScalarType::Float);
  return decode(model, kDecode, EValue(in), count, position, last);
}

int copy_logits(const p3m_model& model, int failed, float* logits) {
  if (!failed && logits) std::memcpy(logits, model.logits, size_t(model.count) * size_t(model.vocab) * sizeof(float));
  return failed;
}

}  // namespace

int p3m_forward(p3m_model* model, const int64_t* tokens, int64_t count, int64_t position, float* logits) {
  return copy_logits(*model, decode_tokens(*model, tokens, count, position, false), logits);
}

int p3m_forward_embeddings(
    p3m_model* model, const float* rows, int64_t count, int64_t hidden, int64_t position, float* logits) {
  return copy_logits(*model, decode_rows(*model, rows, count, hidden, position, false), logits);
}

int p3m_prefill(p3m_model* model, const int64_t* tokens, int64_t count, int64_t position) {
  return decode_tokens(*model, tokens, count, position, true);
}

int p3m_prefill_embeddings(p3m_model* model, const float* rows, int64_t count, int64_t hidden, int64_t position) {
  return decode_rows(*model, rows, count, hidden, position, true);
}

int p3m_embed(p3m_model* model, const int64_t* tokens, int64_t count, float* rows) {
  Listen listen(model->log);
  const auto in = token_input(tokens, count);
  EValue found;
  if (const int failed = compute(*model, kEmbed, {EValue(in)}, found)) return failed;
  const auto out = found.toTensor();
  std::memcpy(rows, out.const_data_ptr<float>(), size_t(out.numel()) * sizeof(float));
  return 0;
}

int64_t p3m_compute(
    p3m_model* model, const char* method, const float* input, const int64_t* sizes, int dims, float* output, int64_t capacity) {
  Listen listen(model->log);
  const std::vector<SizesType> shape(sizes, sizes + dims);
  const auto in = executorch::extension::from_blob(const_cast<float*>(input), shape, ScalarType::Float);
  EValue found;
  if (compute(*model, method, {EValue(in)}, found)) return -1;
  const auto out = found.toTensor();
  const int64_t count = out.numel();
  std::memcpy(output, out.const_data_ptr<float>(), size_t(std::min(count, capacity)) * sizeof(float));
  return count;
}

const float* p3m_logits(const p3m_model* model, int64_t* count, int64_t* vocab) {
  if (count) *count = model->count;
  if (vocab) *vocab = model->vocab;
  return model->logits;
}

int64_t p3m_metadata(p3m_model* model, const char* name, int64_t* values, int64_t capacity) {
  Listen listen(model->log);
  const auto names = model->module->method_names();
  if (!names.ok() || has(*model, name) || !names->count(name)) return -1;
  const auto result = model->module->execute(name);
  if (!result.ok()) return -1;
  int64_t found = 0;
  for (const EValue& value : *result) {
    if (!value.isInt() && !value.isBool()) continue;
    if (found < capacity) values[found] = value.isInt() ? value.toInt() : int64_t(value.toBool());
    ++found;
  }
  return found;
}

const char* p3m_error(const p3m_model* model) { return model->error.c_str(); }

int p3m_packed_state(const p3m_model* model) { return model->packed; }

const char* p3m_packed_reason(const p3m_model* model) { return model->packed_reason.c_str(); }

int p3m_threads(void) {
  auto* pool = executorch::extension::threadpool::get_threadpool();
  return pool ? int(pool->get_thread_count()) : 1;
}

int p3m_set_threads(int threads) {
  auto* pool = executorch::extension::threadpool::get_threadpool();
  if (!pool || (threads <= 0 && open_models > 0)) return 0;
  const uint32_t wanted = threads > 0 ? uint32_t(threads) : usable_cores();
  if (pool->get_thread_count() == wanted) return 0;
  if (open_models > 0) return -1;  // XNNPACK keeps a pointer into the pool for every loaded method
  pool->_unsafe_reset_threadpool(wanted);
  return 0;
}

int p3m_use_isa(const char* isa) {
  if (!phi3mobile::use_isa(isa)) return -1;
  phi3mobile::use_tiles(isa);
  return 0;
}

const char* p3m_isa(void) { return phi3mobile::used_isa(); }

int p3m_has_operator(const char* name) { return executorch::runtime::registry_has_op_function(name); }

const char* p3m_runtime_version(void) { return P3M_RUNTIME_VERSION; }

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
  for (const Method& method : model.methods) {
    if (method.name != kForward && method.name != kDecode) continue;
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

void p3m_close(p3m_model* model) {
  if (model) --open_models;
  delete model;
}
