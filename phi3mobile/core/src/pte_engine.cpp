#include "pte_engine.h"

#include "base/error.h"
#include "input_pos.h"
#include "packed_file.h"

#include <cstdio>
#include <stdexcept>

namespace phi3mobile {

namespace {

// A .pte of 1.N runs on 1.N and 1.N + 1, and on nothing older (ExecuTorch's promise, runtime/COMPATIBILITY.md).
void check_version(const std::string& exported) {
  int made[2], here[2];
  const std::string installed = p3m_runtime_version();
  if (std::sscanf(exported.c_str(), "%d.%d", &made[0], &made[1]) == 2 &&
      std::sscanf(installed.c_str(), "%d.%d", &here[0], &here[1]) == 2 && made[0] == here[0] && here[1] >= made[1] &&
      here[1] <= made[1] + 1) {
    return;
  }
  throw InputError("the bundle was made for ExecuTorch " + exported + ", this library has " + installed +
                   ": a program runs on its own minor version and the next; export it again or use such a library");
}

void check_operators(const Json& needed) {
  std::string missing;
  for (const Json& name : needed.array()) {
    if (!p3m_has_operator(name.string().c_str())) missing += (missing.empty() ? "" : ", ") + name.string();
  }
  if (!missing.empty()) {
    throw InputError("this library lacks the operators " + missing +
                     "; export with a recipe that does without, or build the library with them");
  }
}

// Bytes of memory that are free for a new program; -1: unknown.
int64_t available_memory() {
  std::FILE* file = std::fopen("/proc/meminfo", "r");
  if (!file) return -1;
  char line[128];
  long long kilobytes = -1;
  while (kilobytes < 0 && std::fgets(line, sizeof line, file)) {
    if (std::sscanf(line, "MemAvailable: %lld", &kilobytes) != 1) kilobytes = -1;
  }
  std::fclose(file);
  return kilobytes < 0 ? -1 : int64_t(kilobytes) * 1024;
}

std::string gigabytes(double bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f GB", bytes / 1e9);
  return text;
}

void check_memory(const Json& manifest) {
  const Json& memory = manifest["memory"];
  const int64_t context = manifest["model"]["context"].integer(), available = available_memory();
  const double cache = memory["kv_per_token"].number() * double(context);
  const double weights = manifest["weights_mapped"].boolean() ? 0 : memory["weights"].number();
  const double needed = cache + memory["activations"].number() + weights;
  if (available < 0 || needed <= double(available)) return;
  throw InputError("this bundle needs " + gigabytes(needed) + " of memory (" + gigabytes(cache) + " KV cache for " +
                   std::to_string(context) + " positions), " + gigabytes(double(available)) +
                   " are free; close programs or export with a smaller --context");
}

void check_options(const Json& options) {
  if (options.is_null()) return;
  if (!options.is_object()) throw InputError("the options are no JSON object; give one, or none");
  for (const auto& [name, value] : options.object()) {
    if (name != "threads" && name != "cache" && name != "experts_memory" && name != "num_crops") {
      throw InputError("the option " + quoted(name) + " is unknown; allowed are threads, cache, experts_memory and num_crops");
    }
  }
}

void open_experts(p3m_model* model, const Bundle& bundle, const Json& options) {
  const Json& about = bundle.manifest()["runtime"]["experts"];
  if (about.is_null()) return;
  int64_t memory = integer_option(options, "experts_memory");
  if (memory == 0 && about["memory"].is_integer()) memory = about["memory"].integer();
  const std::string path = bundle.path(about["file"].string());
  char error[512] = "";
  if (p3m_open_experts(model, path.c_str(), uint64_t(memory), int(about["used"].integer()), error, sizeof error)) {
    throw InputError(error);
  }
}

}  // namespace

int64_t integer_option(const Json& options, const char* name) {
  const Json& value = options[name];
  if (value.is_null()) return 0;
  if (!value.is_integer() || value.integer() < 0) {
    throw InputError(std::string("the option ") + name + " is " + value.dump() + "; it must be an integer, 0 or more");
  }
  return value.integer();
}

std::string text_option(const Json& options, const char* name) {
  const Json& value = options[name];
  if (value.is_null()) return "";
  if (!value.is_string()) throw InputError(std::string("the option ") + name + " is " + value.dump() + "; it must be a path");
  return value.string();
}

std::unique_ptr<PteEngine> PteEngine::open(const Bundle& bundle, const Json& options) {
  const Json& manifest = bundle.manifest();
  check_options(options);
  const std::string engine = manifest["engine"].string();
  if (engine != "native" && engine != "executorch") {
    throw InputError("the bundle's engine is " + quoted(engine) +
                     ", which this library has not: give the session an engine of the "
                     "application's, or export for ExecuTorch");
  }
  check_version(manifest["runtime"]["version"].string());
  check_operators(manifest["runtime"]["operators"]);
  check_memory(manifest);
  const Json& packs = manifest["runtime"]["packs"];
  const bool as_they_lie = packs.is_bool() && !packs.boolean();
  const std::string cache = text_option(options, "cache");
  const PackedFile packed(as_they_lie ? "" : cache, bundle.program_hash());
  char error[2000] = "";
  p3m_model* model =
      p3m_open(bundle.program().c_str(), packed.opened(), int(integer_option(options, "threads")), error, sizeof error);
  if (!model) throw InputError(bundle.program() + ": " + error);
  std::unique_ptr<PteEngine> opened(new PteEngine(bundle.info(), model));
  packed.keep();
  open_experts(model, bundle, options);
  return opened;
}

const float* PteEngine::forward(const int64_t* tokens, int64_t count, int64_t position, bool is_long) {
  return logits(count, p3m_forward(model_, tokens, count, marked(position, count, is_long), nullptr));
}

const float* PteEngine::forward_rows(const float* rows, int64_t count, int64_t position, bool is_long) {
  return logits(count, p3m_forward_embeddings(model_, rows, count, info.hidden, marked(position, count, is_long), nullptr));
}

const float* PteEngine::prefill(const int64_t* tokens, int64_t count, int64_t position, bool is_long) {
  return logits(1, p3m_prefill(model_, tokens, count, marked(position, count, is_long)));
}

const float* PteEngine::prefill_rows(const float* rows, int64_t count, int64_t position, bool is_long) {
  return logits(1, p3m_prefill_embeddings(model_, rows, count, info.hidden, marked(position, count, is_long)));
}

int64_t PteEngine::marked(int64_t position, int64_t count, bool is_long) const {
  return all_long(position, count, is_long) ? position + kLongRegime : position;
}

const float* PteEngine::logits(int64_t count, int failed) const {
  if (failed) throw std::runtime_error(p3m_error(model_));
  int64_t rows = 0, vocab = 0;
  const float* logits = p3m_logits(model_, &rows, &vocab);
  if (rows != count || vocab != info.vocab) {
    throw std::runtime_error("the program gave logits [" + std::to_string(rows) + ", " + std::to_string(vocab) + "], not [" +
                             std::to_string(count) + ", " + std::to_string(info.vocab) + "]");
  }
  return logits;
}

}  // namespace phi3mobile
