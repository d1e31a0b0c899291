#include "bundle.h"

#include "base/error.h"
#include "base/files.h"
#include "base/sha256.h"

#include <algorithm>
#include <cstdio>
#include <functional>
#include <vector>

namespace phi3mobile {

namespace {

constexpr int64_t kFormat = 2;
constexpr const char* kAgain = "; export the bundle again";

using Fits = bool (*)(const Json&);

bool text(const Json& value) { return value.is_string(); }
bool nonempty(const Json& value) { return value.is_string() && !value.string().empty(); }
bool whole(const Json& value) { return value.is_integer() && value.integer() >= 0; }
bool positive(const Json& value) { return value.is_integer() && value.integer() >= 1; }
bool number(const Json& value) { return value.is_number() && value.number() >= 0; }
bool boolean(const Json& value) { return value.is_bool(); }
bool object(const Json& value) { return value.is_object(); }

template <Fits fits>
bool or_null(const Json& value) {
  return value.is_null() || fits(value);
}

template <Fits fits>
bool list_of(const Json& value) {
  return value.is_array() && std::all_of(value.array().begin(), value.array().end(), fits);
}

template <Fits fits>
bool some(const Json& value) {
  return list_of<fits>(value) && !value.array().empty();
}

template <Fits fits>
bool dict_of(const Json& value) {
  return value.is_object() &&
         std::all_of(value.object().begin(), value.object().end(), [](const auto& member) { return fits(member.second); });
}

// A relative path that stays in the folder.
bool path_inside(const Json& value) {
  if (!nonempty(value) || value.string() == "." || value.string().front() == '/') return false;
  const std::string all = "/" + value.string() + "/";
  return all.find("/../") == std::string::npos && all.find('\0') == std::string::npos;
}

bool version(const Json& value) {
  int major = 0, minor = 0, length = 0;
  if (!text(value) || std::sscanf(value.string().c_str(), "%6d.%6d%n", &major, &minor, &length) != 2) return false;
  return size_t(length) == value.string().size() || value.string()[size_t(length)] == '.';
}

bool file(const Json& value) { return whole(value["bytes"]) && text(value["sha256"]); }

bool files(const Json& value) {
  return dict_of<file>(value) && std::all_of(value.object().begin(), value.object().end(),
                                     [](const auto& member) { return path_inside(member.first); });
}

struct Field {
  const char* section;  // null: the field is at the top
  const char* name;
  Fits fits;
  bool needed = true;
};

// What reading relies on, as SCHEMA and LATER of phi3mobile/bundle.py. More keys are fine.
constexpr Field kFields[] = {
    {nullptr, "name", text},
    {nullptr, "family", text},
    {nullptr, "engine", nonempty},
    {nullptr, "weights_mapped", boolean},
    {nullptr, "programs", some<path_inside>},
    {"runtime", "name", text},
    {"runtime", "version", version},
    {"runtime", "operators", list_of<text>},
    {"runtime", "program", path_inside},
    {"recipe", "name", text},
    {nullptr, "files", files},
    {"model", "vocab", positive},
    {"model", "context", positive},
    {"model", "chunk", positive},
    {"model", "max_context", positive},
    {"model", "parameters", positive},
    {"model", "layers", positive},
    {"model", "hidden", positive},
    {"model", "heads", positive},
    {"model", "kv_heads", positive},
    {"model", "head_dim", positive},
    {"model", "original_context", or_null<positive>},
    {"model", "bits_per_weight", number},
    {"model", "back", or_null<whole>, false},
    {"tokens", "bos", or_null<whole>},
    {"tokens", "eos", list_of<whole>},
    {"chat", "template", or_null<text>},
    {"chat", "bos", text},
    {"chat", "eos", text},
    {"chat", "segments", or_null<object>},
    {"memory", "weights", number},
    {"memory", "kv_per_token", number},
    {"memory", "activations", number},
    {"memory", "peak", dict_of<number>},
    {"provenance", "source", text},
    {"provenance", "source_hash", text},
    {"provenance", "tool", text},
    {nullptr, "license", or_null<text>},
    {nullptr, "generation", object, false},
    {"vision", "program", path_inside, false},
    {"vision", "separators", path_inside, false},
    {"vision", "hidden", positive, false},
    {"vision", "width", positive, false},
    {"vision", "rows", positive, false},
    {"vision", "bits", positive, false},
    {"vision", "num_crops", positive, false},
};

std::string spelled(const Field& field) { return (field.section ? std::string(field.section) + "." : "") + field.name; }

// What bundles of format 1 leave unsaid (phi3mobile/bundle_v1.py), of the ones that run here.
Json upgraded(Json manifest) {
  const Json& runtime = manifest["runtime"];
  if (manifest["format"].integer() != 1 || !runtime["kind"].is_string() || !runtime["program"].is_string()) return manifest;
  const std::string kind = runtime["kind"].string();
  const Json& attention = manifest["recipe"]["attention"];
  const bool native = attention.is_string() && attention.string() == "native";
  Json named = runtime;
  named.set("name", kind == "executorch" ? "ExecuTorch" : kind);
  const Json programs{Json::Array{runtime["program"]}};
  manifest.set("engine", kind == "executorch" && native ? "native" : kind);
  manifest.set("weights_mapped", native || kind == "litert");
  manifest.set("programs", programs);
  manifest.set("runtime", named);
  return manifest;
}

// Hashes of what the manifest lists of a program: of the file, or of the files in the folder that it is.
std::vector<std::string> hashes_of(const Json& manifest, const std::string& program) {
  std::vector<std::string> found;
  for (const auto& [name, listed] : manifest["files"].object()) {
    if (name == program || name.rfind(program + "/", 0) == 0) found.push_back(listed["sha256"].string());
  }
  return found;
}

// InputError: a section `vision` that lacks something or names files that are not there.
void check_vision(const std::string& path, const Json& manifest) {
  const Json& vision = manifest["vision"];
  if (vision.is_null()) return;
  std::string lacking, missing;
  for (const Field& field : kFields) {
    if (!field.section || std::string(field.section) != "vision" || vision.has(field.name)) continue;
    lacking += (lacking.empty() ? "" : ", ") + std::string(field.name);
  }
  if (!lacking.empty()) throw InputError(path + ": vision lacks " + lacking + kAgain);
  const std::string program = vision["program"].string(), separators = vision["separators"].string();
  if (hashes_of(manifest, program).empty()) missing = program;
  if (!manifest["files"].has(separators)) missing += (missing.empty() ? "" : ", ") + separators;
  if (!missing.empty()) throw InputError(path + ": vision names " + missing + ", no file of the bundle" + kAgain);
  const int64_t hidden = vision["hidden"].integer(), model = manifest["model"]["hidden"].integer();
  if (hidden != model) {
    throw InputError(
        path + ": vision.hidden is " + std::to_string(hidden) + ", model.hidden " + std::to_string(model) + kAgain);
  }
}

Json read_manifest(const std::string& folder) {
  const std::string path = folder + "/manifest.json";
  if (!is_file(path)) throw InputError(folder + " has no manifest.json: it is not a bundle; make one with `phi3mobile export`");
  Json manifest = Json::parse(read_file(path), path);
  const Json& format = manifest["format"];
  if (!positive(format)) throw InputError(path + " has no format version" + kAgain);
  if (format.integer() > kFormat) {
    throw InputError(folder + " has bundle format " + format.dump() + ", this phi3mobile reads up to " +
                     std::to_string(kFormat) + "; upgrade phi3mobile");
  }
  manifest = upgraded(std::move(manifest));
  std::string lacking;
  for (const Field& field : kFields) {
    const Json& in = field.section ? manifest[field.section] : manifest;
    if (field.needed && !in.has(field.name)) lacking += (lacking.empty() ? "" : ", ") + spelled(field);
  }
  if (!lacking.empty()) throw InputError(path + " lacks " + lacking + kAgain);
  for (const Field& field : kFields) {
    const Json& in = field.section ? manifest[field.section] : manifest;
    if (in.has(field.name) && !field.fits(in[field.name])) {
      throw InputError(path + ": " + spelled(field) + " can't be " + in[field.name].dump().substr(0, 80) + kAgain);
    }
  }
  check_vision(path, manifest);
  std::vector<std::string> programs{manifest["runtime"]["program"].string()};
  for (const Json& program : manifest["programs"].array()) programs.push_back(program.string());
  for (const std::string& program : programs) {
    if (hashes_of(manifest, program).empty())
      throw InputError(path + ": the program " + program + " is not among its files" + kAgain);
  }
  return manifest;
}

}  // namespace

Bundle::Bundle(std::string folder) : folder_(std::move(folder)) {
  if (!is_folder(folder_)) {
    throw InputError(folder_ + " does not exist or is not a folder; give a bundle made by `phi3mobile export`");
  }
  manifest_ = read_manifest(folder_);
  for (const auto& [name, listed] : manifest_["files"].object()) {
    const int64_t size = file_size(path(name)), said = listed["bytes"].integer();
    if (size < 0) throw InputError(folder_ + " lacks the file " + name + "; copy the whole bundle again");
    if (size != said) {
      throw InputError(path(name) + " has " + std::to_string(size) + " bytes, the manifest says " + std::to_string(said) +
                       "; copy the bundle again");
    }
  }
}

void Bundle::verify(const std::function<bool(int64_t, int64_t)>& progress) const {
  int64_t total = 0, done = 0;
  for (const auto& member : manifest_["files"].object()) total += member.second["bytes"].integer();
  std::vector<char> buffer(1 << 20);
  for (const auto& [name, listed] : manifest_["files"].object()) {
    Sha256 hash;
    InputFile in(path(name));
    while (const size_t count = in.read(buffer.data(), buffer.size())) {
      hash.add(buffer.data(), count);
      done += int64_t(count);
      if (!progress(done, total)) throw InputError("verification was stopped; start it again");
    }
    if (hash.hex() != listed["sha256"].string()) {
      throw InputError(path(name) + " is damaged: its SHA-256 is not the manifest's; copy the bundle again");
    }
  }
}

std::string Bundle::program_hash() const {
  const Json& hash = manifest_["files"][manifest_["runtime"]["program"].string()]["sha256"];
  return hash.is_string() ? hash.string() : "";
}

EngineInfo Bundle::info() const {
  const Json& model = manifest_["model"];
  EngineInfo info;
  info.vocab = model["vocab"].integer();
  info.max_context = model["context"].integer();
  info.max_chunk = model["chunk"].integer();
  if (model["original_context"].is_integer()) info.original_context = model["original_context"].integer();
  if (!vision().is_null()) info.hidden = model["hidden"].integer();
  if (model["back"].is_integer()) info.back = model["back"].integer();
  return info;
}

Parts Bundle::parts() const {
  Parts parts;
  parts.tokenizer = Tokenizer::open(folder_);
  parts.segments = manifest_["chat"]["segments"];
  parts.template_given = !manifest_["chat"]["template"].is_null();
  for (const Json& id : manifest_["tokens"]["eos"].array()) parts.eos.insert(id.integer());
  parts.sampling = default_sampling(manifest_["generation"], manifest_["model"]["parameters"].integer());
  return parts;
}

std::optional<TowerInfo> Bundle::tower() const {
  if (vision().is_null()) return std::nullopt;
  const auto number = [&](const char* name) { return vision()[name].integer(); };
  const std::string file = path(vision()["separators"].string());
  // Widths are a manifest's word: the file's size is looked at before anything is made of them.
  const int64_t bytes = file_size(file), width = number("width");
  if (width > bytes || bytes != 8 * width * int64_t(sizeof(float))) {
    throw InputError(file + " has " + std::to_string(bytes / int64_t(sizeof(float))) + " values, 8 times " +
                     std::to_string(width) + " were expected" + kAgain);
  }
  TowerInfo info{number("num_crops"), number("hidden"), width, number("rows"), std::vector<float>(size_t(8 * width)), ""};
  for (const char* part : {"program", "separators"}) {
    for (const std::string& hash : hashes_of(manifest(), vision()[part].string())) {
      info.files += (info.files.empty() ? "" : " ") + hash;
    }
  }
  InputFile(file).exactly(info.separators.data(), size_t(bytes));
  return info;
}

}  // namespace phi3mobile
