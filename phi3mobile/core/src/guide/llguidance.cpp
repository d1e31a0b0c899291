#include "guide/llguidance.h"

#include "base/error.h"

#include <algorithm>
#include <atomic>
#include <mutex>

#include <dlfcn.h>

namespace phi3mobile {

namespace {

// As llguidance.h of 1.9 declares them. Structures are read by their stated size, or filled in by the library itself.
struct TokenizerInit {
  size_t struct_size;
  uint32_t vocab_size, tok_eos;
  const uint32_t* token_lens;
  const uint8_t* token_bytes;
  const char* tokenizer_json;
  bool tokenize_assumes_string;
  size_t (*tokenize_fn)(const void* user, const uint8_t* bytes, size_t count, uint32_t* tokens, size_t room);
  bool use_approximate_greedy_tokenize_fn;
  const void* tokenize_user_data;
  const char* const* slices;
  const uint32_t* tok_eos_extra;
  uint32_t tok_eos_extra_count;
};

struct ConstraintInit {
  const void* tokenizer;
  uint32_t log_buffer_level, log_stderr_level;
  unsigned char rest[496];  // flags and limits, whose defaults the library sets; more than it has
};

// The functions used, X(result, name, arguments).
#define P3M_LLGUIDANCE_CALLS(X)                                                                      \
  X(const char*, llg_get_version, (void))                                                            \
  X(void*, llg_new_tokenizer_v2, (const TokenizerInit*, char*, size_t))                              \
  X(void, llg_free_tokenizer, (void*))                                                               \
  X(void, llg_constraint_init_set_defaults, (ConstraintInit*, const void*))                          \
  X(void*, llg_new_matcher, (const ConstraintInit*, const char*, const char*))                       \
  X(int32_t, llg_validate_grammar, (const ConstraintInit*, const char*, const char*, char*, size_t)) \
  X(int32_t, llg_matcher_compute_mask_into, (void*, uint32_t*, size_t))                              \
  X(int32_t, llg_matcher_consume_tokens, (void*, const uint32_t*, size_t))                           \
  X(int32_t, llg_matcher_validate_tokens, (void*, const uint32_t*, size_t))                          \
  X(int32_t, llg_matcher_compute_ff_tokens, (void*, uint32_t*, size_t))                              \
  X(const char*, llg_matcher_get_error, (void*))                                                     \
  X(size_t, llg_matcher_get_mask_byte_size, (const void*))                                           \
  X(bool, llg_matcher_is_accepting, (void*))                                                         \
  X(bool, llg_matcher_is_stopped, (const void*))                                                     \
  X(bool, llg_matcher_is_error, (const void*))                                                       \
  X(void*, llg_clone_matcher, (const void*))                                                         \
  X(void, llg_free_matcher, (void*))

struct Calls {
#define P3M_FIELD(result, name, arguments) result(*name) arguments = nullptr;
  P3M_LLGUIDANCE_CALLS(P3M_FIELD)
#undef P3M_FIELD
};

}  // namespace

#ifdef P3M_LLGUIDANCE_STATIC  // linked in, as on iOS
extern "C" {
#define P3M_DECLARE(result, name, arguments) result name arguments;
P3M_LLGUIDANCE_CALLS(P3M_DECLARE)
#undef P3M_DECLARE
}
#endif

namespace {

constexpr const char* kFile =
#ifdef __APPLE__
    "libllguidance.dylib";
#else
    "libllguidance.so";
#endif
constexpr size_t kMostForced = 1 << 14;
std::mutex lock;
std::atomic<const Calls*> loaded{nullptr};  // once there, it stays
std::string chosen;                         // by use_llguidance
bool is_chosen = false;

#ifndef P3M_LLGUIDANCE_STATIC
// The folder of this library, or of p3m, which holds it; "" where the shell found that by PATH: there the loader looks beside
// it.
std::string beside() {
  Dl_info here;
  if (!dladdr(reinterpret_cast<const void*>(&use_llguidance), &here) || !here.dli_fname) return "";
  const std::string file = here.dli_fname;
  const size_t folder = file.rfind('/');
  return folder == std::string::npos ? "" : file.substr(0, folder + 1);
}
#endif

[[noreturn]] void missing(const std::string& why) {
  throw InputError("this build has no constrained output: " + why + "; put " + kFile +
                   " (llguidance 1.9) beside libphi3mobile, or leave out schema, regex and grammar");
}

// InputError: the file has not what is needed.
const Calls* calls_of(void* library, const std::string& file) {
  auto calls = std::make_unique<Calls>();
#ifdef P3M_LLGUIDANCE_STATIC
  (void)library, (void)file;
#define P3M_TAKE(result, name, arguments) calls->name = &::phi3mobile::name;
#else
#define P3M_TAKE(result, name, arguments)                                     \
  calls->name = reinterpret_cast<result(*) arguments>(dlsym(library, #name)); \
  if (!calls->name) missing(file + " lacks " #name);
#endif
  P3M_LLGUIDANCE_CALLS(P3M_TAKE)
#undef P3M_TAKE
  const std::string version = calls->llg_get_version();
  if (version.rfind("llguidance@1.", 0) != 0) missing(file + " is " + version);
  return calls.release();  // for the life of the process, as the library
}

const Calls& calls() {
  const std::lock_guard<std::mutex> held(lock);
  if (is_chosen && chosen.empty()) missing("it was turned off");
  if (const Calls* found = loaded) return *found;
#ifdef P3M_LLGUIDANCE_STATIC
  return *(loaded = calls_of(nullptr, "llguidance"));
#else
  std::vector<std::string> places{chosen};
  if (!is_chosen) places = {beside() + kFile, kFile};
  std::string why;
  for (const std::string& place : places) {
    // Only what is called is bound: the wheel's library names Python's functions, which nobody calls.
    if (void* library = dlopen(place.c_str(), RTLD_LAZY | RTLD_LOCAL)) return *(loaded = calls_of(library, place));
    if (const char* said = dlerror(); why.empty() && said) why = said;
  }
  missing(why);
#endif
}

// Of what was made: it is loaded.
const Calls& made() { return *loaded.load(); }

ConstraintInit init_of(const GuideTokens& vocabulary) {
  ConstraintInit init{};
  calls().llg_constraint_init_set_defaults(&init, vocabulary.handle());
  init.log_buffer_level = init.log_stderr_level = 0;
  return init;
}

std::vector<uint32_t> small(const std::vector<int64_t>& tokens) { return {tokens.begin(), tokens.end()}; }

}  // namespace

void use_llguidance(const char* path) {
  const std::lock_guard<std::mutex> held(lock);
  is_chosen = path != nullptr;
  chosen = path ? path : "";
}

const char* llguidance_version() { return calls().llg_get_version(); }

bool has_llguidance() {
  try {
    calls();
    return true;
  } catch (const InputError&) {
    return false;
  }
}

GuideTokens::GuideTokens(const std::vector<std::string>& tokens, Spell spell) : spell_(std::move(spell)), size_(tokens.size()) {
  std::vector<uint32_t> lengths;
  std::string bytes;
  for (const std::string& token : tokens) {
    lengths.push_back(uint32_t(token.size()));
    bytes += token;
  }
  lengths.push_back(0);
  TokenizerInit init{};
  init.struct_size = sizeof init;
  init.vocab_size = uint32_t(size_ + 1);
  init.tok_eos = uint32_t(size_);
  init.token_lens = lengths.data();
  init.token_bytes = reinterpret_cast<const uint8_t*>(bytes.data());
  init.tokenize_assumes_string = true;
  init.tokenize_user_data = &spell_;
  init.tokenize_fn = [](const void* user, const uint8_t* text, size_t count, uint32_t* to, size_t room) -> size_t {
    try {
      const auto ids = (*static_cast<const Spell*>(user))({reinterpret_cast<const char*>(text), count});
      std::copy_n(ids.begin(), std::min(room, ids.size()), to);
      return ids.size();
    } catch (...) {  // nothing may be thrown through Rust
      return 0;
    }
  };
  char error[500] = "";
  handle_ = calls().llg_new_tokenizer_v2(&init, error, sizeof error);
  if (!handle_) throw InputError("this vocabulary can't be guided: " + std::string(error));
}

GuideTokens::~GuideTokens() {
  if (handle_) made().llg_free_tokenizer(handle_);
}

const GuideTokens& bytes_vocabulary() {
  static const GuideTokens* found = [] {
    std::vector<std::string> tokens;
    for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, char(byte));
    return new GuideTokens(tokens, [](std::string_view text) {
      std::vector<uint32_t> ids;
      for (const char byte : text) ids.push_back(uint8_t(byte));
      return ids;
    });
  }();
  return *found;
}

Matcher::Matcher(const GuideTokens& vocabulary, const Json& grammar) : vocabulary_(vocabulary.size()) {
  const ConstraintInit init = init_of(vocabulary);
  handle_ = calls().llg_new_matcher(&init, "guidance", grammar.dump().c_str());
}

Matcher::Matcher(const Matcher& other)
    : vocabulary_(other.vocabulary_), handle_(other.handle_ ? made().llg_clone_matcher(other.handle_) : nullptr) {}

Matcher::Matcher(Matcher&& other) noexcept
    : vocabulary_(other.vocabulary_), handle_(std::exchange(other.handle_, nullptr)), bits_(std::move(other.bits_)) {}

Matcher& Matcher::operator=(Matcher other) noexcept {
  std::swap(vocabulary_, other.vocabulary_);
  std::swap(handle_, other.handle_);
  std::swap(bits_, other.bits_);
  return *this;
}

Matcher::~Matcher() {
  if (handle_) made().llg_free_matcher(handle_);
}

const std::vector<uint32_t>& Matcher::allowed() {
  const size_t size = made().llg_matcher_get_mask_byte_size(handle_);
  bits_.assign(size / 4, 0);
  if (!is_error() && made().llg_matcher_compute_mask_into(handle_, bits_.data(), size))
    std::fill(bits_.begin(), bits_.end(), 0);
  bits_[vocabulary_ / 32] &= ~(uint32_t(1) << vocabulary_ % 32);  // its own end
  return bits_;
}

bool Matcher::consume(const std::vector<int64_t>& tokens) {
  const auto ids = small(tokens);
  return !made().llg_matcher_consume_tokens(handle_, ids.data(), ids.size());
}

size_t Matcher::validate(const std::vector<int64_t>& tokens, bool then_end) {
  auto ids = small(tokens);
  if (then_end) ids.push_back(uint32_t(vocabulary_));
  return size_t(std::max(0, made().llg_matcher_validate_tokens(handle_, ids.data(), ids.size())));
}

std::vector<int64_t> Matcher::forced() {
  std::vector<uint32_t> ids(kMostForced);
  const int32_t count = made().llg_matcher_compute_ff_tokens(handle_, ids.data(), ids.size());
  return {ids.begin(), ids.begin() + std::max(0, count)};
}

bool Matcher::accepting() { return made().llg_matcher_is_accepting(handle_); }
bool Matcher::stopped() const { return made().llg_matcher_is_stopped(handle_); }
bool Matcher::is_error() const { return made().llg_matcher_is_error(handle_); }

std::string Matcher::error() {
  const char* said = made().llg_matcher_get_error(handle_);
  return said ? said : "";
}

std::string grammar_refusal(const Json& grammar) {
  const ConstraintInit init = init_of(bytes_vocabulary());
  char message[4000] = "";
  const int32_t found = made().llg_validate_grammar(&init, "guidance", grammar.dump().c_str(), message, sizeof message);
  return found < 0 ? (*message ? message : "it is refused") : "";
}

}  // namespace phi3mobile
