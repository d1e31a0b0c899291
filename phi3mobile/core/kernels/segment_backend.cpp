// The delegate "Phi3mobileBackend": a segment told in JSON (export/targets/executorch/tiled.py), its matrices in the program's
// named data, mapped with the file and multiplied as they lie.
#include "base/error.h"
#include "base/json.h"
#include "input_pos.h"
#include "large_pages.h"
#include "segment.h"

#include <memory>
#include <string>

#include <executorch/runtime/backend/interface.h>
#include <executorch/runtime/core/exec_aten/util/tensor_util.h>
#include <executorch/runtime/platform/log.h>

namespace phi3mobile {
namespace {

using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using executorch::aten::Tensor;
using executorch::runtime::BackendExecutionContext;
using executorch::runtime::BackendInitContext;
using executorch::runtime::CompileSpec;
using executorch::runtime::DelegateHandle;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::FreeableBuffer;
using executorch::runtime::Result;
using executorch::runtime::Span;

constexpr int64_t kVersion = 2;
constexpr int64_t kMostRows = 1 << 24;

struct Loaded {
  Segment segment;
  bool makes_logits = false;  // then its last input is input_pos
  std::vector<int64_t> vector_sizes;
  std::vector<FreeableBuffer> data;
};

[[noreturn]] void refuse(const std::string& why) { throw InputError(why + ": export the bundle again"); }

int64_t whole(const Json& about, const char* name) {
  if (!about[name].is_integer()) refuse(std::string("a segment without ") + name);
  return about[name].integer();
}

// Named data of a size, which stay mapped as long as the segment.
const void* data_of(const Json& key, int64_t size, BackendInitContext& context, Loaded& loaded) {
  if (!key.is_string()) refuse("a matrix without its data's name");
  Result<FreeableBuffer> found = context.get_named_data_map()->get_data(key.string().c_str());
  if (!found.ok()) refuse("the program lacks the data " + key.string());
  if (int64_t(found->size()) != size) refuse("the data " + key.string() + " have another size than their matrix");
  loaded.data.push_back(std::move(*found));
  return loaded.data.back().data();
}

Matrix matrix_of(const Json& about, BackendInitContext& context, Loaded& loaded) {
  Matrix m;
  if (about.is_null()) return m;
  m.form = {whole(about, "width"), whole(about, "group"), int(whole(about, "bits")),
      about["offsets"].is_bool() && about["offsets"].boolean()};
  m.rows = whole(about, "rows");
  if (!m.form.sensible() || m.rows < 1 || m.rows > kMostRows) refuse("a matrix of impossible sizes");
  m.tiles = static_cast<const uint8_t*>(data_of(about["tiles"], m.form.matrix_bytes(m.rows), context, loaded));
  want_large_pages(m.tiles, size_t(m.form.matrix_bytes(m.rows)));
  if (!about["bias"].is_null()) m.bias = static_cast<const float*>(data_of(about["bias"], m.rows * 4, context, loaded));
  return m;
}

std::unique_ptr<Loaded> load(const Json& about, BackendInitContext& context) {
  if (whole(about, "version") != kVersion) refuse("a segment of another version of phi3mobile");
  auto loaded = std::make_unique<Loaded>();
  Segment& s = loaded->segment;
  const Json& matrices = about["matrices"];
  s.hidden = whole(about, "hidden");
  s.o = matrix_of(matrices["o"], context, *loaded);
  s.gate = matrix_of(matrices["gate"], context, *loaded), s.up = matrix_of(matrices["up"], context, *loaded);
  s.down = matrix_of(matrices["down"], context, *loaded);
  loaded->makes_logits = matrices.has("head");
  s.last = matrix_of(matrices[loaded->makes_logits ? "head" : "qkv"], context, *loaded);
  if (!about["norm"].is_string() || !about["activation"].is_string() || !about["eps"].is_number())
    refuse("a segment without its norm");
  s.layer_norm = about["norm"].string() == "layernorm", s.gegelu = about["activation"].string() == "gegelu";
  s.eps = float(about["eps"].number()), s.limit = about["limit"].is_number() ? float(about["limit"].number()) : 0;
  const auto flag = [&](const char* name) { return about[name].is_bool() && about[name].boolean(); };
  s.takes_second = flag("takes_second"), s.gives_x = flag("gives_x");
  const bool mlp = s.gate && s.up && s.down, none = !s.gate && !s.up && !s.down;
  const bool fits = s.hidden > 0 && s.hidden % kCodes == 0 && (mlp || none) &&
                    (!s.o || (s.o.rows == s.hidden && s.takes_second)) &&
                    (none || (s.takes_second && s.gate.form.width == s.hidden && s.up.form.width == s.hidden &&
                                 s.gate.rows == s.up.rows && s.down.form.width == s.gate.rows && s.down.rows == s.hidden)) &&
                    (!s.last || s.last.form.width == s.hidden) && (!s.gives_x || (s.takes_second && !loaded->makes_logits));
  if (!fits) refuse("a segment whose matrices do not fit each other");
  loaded->vector_sizes = s.vector_sizes();
  return loaded;
}

bool holds(const EValue& value, int64_t count, int64_t width) {
  if (!value.isTensor()) return false;
  const Tensor& x = value.toTensor();
  return x.scalar_type() == ScalarType::Float && x.dim() == 2 && x.size(0) == count && x.size(1) == width;
}

bool is_position(const EValue& value) {
  return value.isTensor() && value.toTensor().numel() == 1 && value.toTensor().scalar_type() == ScalarType::Long;
}

class SegmentBackend final : public executorch::runtime::BackendInterface {
 public:
  bool is_available() const override { return true; }

  Result<DelegateHandle*> init(
      BackendInitContext& context, FreeableBuffer* processed, executorch::runtime::ArrayRef<CompileSpec>) const override {
    try {
      const std::string_view text(static_cast<const char*>(processed->data()), processed->size());
      std::unique_ptr<Loaded> loaded = load(Json::parse(text, "a segment"), context);
      processed->Free();
      return loaded.release();
    } catch (const std::exception& error) {
      ET_LOG(Error, "%s", error.what());
      return Error::DelegateInvalidCompatibility;
    }
  }

  Error execute(BackendExecutionContext&, DelegateHandle* handle, Span<EValue*> values) const override {
    const auto& loaded = *static_cast<const Loaded*>(handle);
    const Segment& s = loaded.segment;
    const std::vector<int64_t>& sizes = loaded.vector_sizes;
    const size_t rows = s.takes_second ? 2 : 1, results = s.gives_x ? 2 : 1;
    const size_t given = rows + sizes.size() + (loaded.makes_logits ? 1 : 0);
    if (values.size() != given + results || !values[0]->isTensor() || values[0]->toTensor().dim() != 2) {
      return wrong("the program gives a segment other inputs than it takes");
    }
    const int64_t count = values[0]->toTensor().size(0);
    bool fits = holds(*values[0], count, s.hidden) && (rows == 1 || holds(*values[1], count, s.width_of_second()));
    const float* vectors[8];
    for (size_t i = 0; i < sizes.size(); ++i) {
      const EValue& value = *values[rows + i];
      fits = fits && value.isTensor() && value.toTensor().numel() == sizes[i] &&
             value.toTensor().scalar_type() == ScalarType::Float;
      if (fits) vectors[i] = value.toTensor().const_data_ptr<float>();
    }
    float* out[2] = {nullptr, nullptr};
    const int64_t widths[2] = {results == 2 ? s.hidden : s.width_of_result(), s.width_of_result()};
    for (size_t i = 0; i < results && fits; ++i) {
      EValue& value = *values[given + i];
      const SizesType shape[2] = {SizesType(count), SizesType(widths[i])};
      fits = value.isTensor() && executorch::runtime::resize_tensor(value.toTensor(), {shape, 2}) == Error::Ok &&
             holds(value, count, widths[i]);
      if (fits) out[i] = value.toTensor().mutable_data_ptr<float>();
    }
    fits = fits && (!loaded.makes_logits || is_position(*values[given - 1]));
    if (!fits) return wrong("the program's shapes do not fit a segment's matrices");
    if (count == 0) return Error::Ok;
    const float* x = values[0]->toTensor().const_data_ptr<float>();
    const float* second = rows == 2 ? values[1]->toTensor().const_data_ptr<float>() : nullptr;
    if (loaded.makes_logits && *values[given - 1]->toTensor().const_data_ptr<int64_t>() >= kLastRow) {
      const int64_t before = count - 1;
      if (second) second += before * s.width_of_second();
      s.run(x + before * s.hidden, second, vectors, 1, nullptr, out[0] + before * s.width_of_result());
    } else {
      s.run(x, second, vectors, count, results == 2 ? out[0] : nullptr, out[results - 1]);
    }
    return Error::Ok;
  }

  void destroy(DelegateHandle* handle) const override { delete static_cast<Loaded*>(handle); }

 private:
  static Error wrong(const char* why) {
    ET_LOG(Error, "%s: export the bundle again", why);
    return Error::InvalidProgram;
  }
};

SegmentBackend backend;
[[maybe_unused]] const Error registered = executorch::runtime::register_backend({"Phi3mobileBackend", &backend});

}  // namespace
}  // namespace phi3mobile
