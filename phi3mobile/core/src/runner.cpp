#include "program.h"
#include "input_pos.h"
#include "packed_log.h"
#include "threads.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string_view>

#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/platform/runtime.h>

namespace {

using executorch::extension::Module;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using phi3mobile::first_of;
using phi3mobile::kDecode;
using phi3mobile::kEmbed;
using phi3mobile::kForward;
using phi3mobile::Listen;
using phi3mobile::Method;
using phi3mobile::open_models;

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
  for (const char* name : phi3mobile::kMethods) {
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
  if (last && model.takes_last_row) position |= phi3mobile::kLastRow;
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

void p3m_close(p3m_model* model) {
  if (model) --open_models;
  delete model;
}
