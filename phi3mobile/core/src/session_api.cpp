// phi3mobile_session.h: the border, where exceptions become lines of text.
#include "phi3mobile_session.h"

#include "base/border.h"
#include "base/error.h"
#include "bundle.h"
#include "guide/llguidance.h"
#include "host_engine.h"
#include "pte_engine.h"
#include "pte_tower.h"
#include "session/session.h"
#include "state.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

using phi3mobile::Bundle;
using phi3mobile::Event;
using phi3mobile::guarded;
using phi3mobile::InputError;
using phi3mobile::Json;
using phi3mobile::required;

struct p3m_bundle {
  explicit p3m_bundle(const char* folder) : bundle(folder), manifest(bundle.manifest().dump()) {}
  Bundle bundle;
  std::string manifest;
};

struct p3m_session {
  p3m_session(std::string program, phi3mobile::Parts parts, std::unique_ptr<phi3mobile::Engine> engine,
      std::unique_ptr<phi3mobile::Pictures> pictures, p3m_model* model)
      : program(std::move(program)), model(model), session(std::move(parts), std::move(engine), std::move(pictures)) {}
  std::string program;  // hash of the bundle's program: what a saved state belongs to
  p3m_model* model;     // null: an engine of the host's
  phi3mobile::Session session;
  std::string shown;  // the last event's text
};

namespace {

// Pictures of a session whose tower this is; null: there is none. InputError: a number of crops that can't be.
std::unique_ptr<phi3mobile::Pictures> pictures_over(std::unique_ptr<phi3mobile::Tower> tower, int64_t num_crops) {
  const std::optional<int64_t> most = num_crops ? std::optional<int64_t>(num_crops) : std::nullopt;
  if (tower) return std::make_unique<phi3mobile::Pictures>(std::move(tower), most);
  if (most) throw InputError("num_crops is " + std::to_string(*most) + ": this model sees no pictures; leave it out");
  return nullptr;
}

p3m_session* open_with(const char* folder, const p3m_engine* engine, const p3m_tower* tower) {
  const p3m_engine& given = *required(engine, "the engine");
  if (given.version != P3M_API_VERSION) {
    throw InputError("the engine says version " + std::to_string(given.version) + ", this library has " +
                     std::to_string(P3M_API_VERSION) + ": build it with this library's headers");
  }
  if (!given.forward) throw InputError("the engine has no forward: give the function");
  struct Close {
    const p3m_engine* engine;
    ~Close() {
      if (engine && engine->close) engine->close(engine->user);
    }
  } close{&given};
  const Bundle bundle(required(folder, "the folder"));
  auto parts = bundle.parts();
  std::unique_ptr<phi3mobile::Pictures> pictures;
  if (tower) {
    auto info = bundle.tower();
    if (!info) throw InputError(bundle.folder() + " sees no pictures: open it without a tower");
    pictures = pictures_over(std::make_unique<phi3mobile::HostTower>(*std::move(info), given, *tower), tower->num_crops);
  }
  auto host = std::make_unique<phi3mobile::HostEngine>(bundle.info(), given, tower);
  close.engine = nullptr;  // the HostEngine closes it
  return new p3m_session(bundle.program_hash(), std::move(parts), std::move(host), std::move(pictures), nullptr);
}

constexpr const char* kState = "phi3mobile-state";

// What is kept beside the KV cache: whose it is, and which tokens.
std::string about_state(p3m_session& s) {
  const phi3mobile::Rows& rows = s.session.rows();
  // Rows from a picture on are left out: a later process gives its pictures other numbers.
  const auto known = std::find_if(rows.tokens.begin(), rows.tokens.end(), [](int64_t token) { return token < 0; });
  Json::Array tokens(rows.tokens.begin(), known);
  Json about{Json::Object()};
  about.set("format", kState);
  about.set("program", s.program);
  about.set("runtime", p3m_runtime_version());
  about.set("long", rows.is_long);
  about.set("farthest", rows.farthest);
  about.set("tokens", std::move(tokens));
  return about.dump();
}

// Takes it into the rows. InputError: it is another program's.
void take_state(p3m_session& s, const Json& about, const std::string& path) {
  const auto is = [&](const char* name, const std::string& value) {
    return about[name].is_string() && about[name].string() == value;
  };
  if (!is("format", kState) || !about["tokens"].is_array() || !about["long"].is_bool() || !about["farthest"].is_integer()) {
    throw InputError(path + " is no state of a session; give a file that p3m_session_save wrote");
  }
  if (!is("program", s.program)) throw InputError(path + " was saved with another bundle: prefill again");
  if (!is("runtime", p3m_runtime_version())) throw InputError(path + " was saved with another runtime: prefill again");
  const auto& info = s.session.engine().info;
  phi3mobile::Rows& rows = s.session.rows();
  std::vector<int64_t> tokens;
  for (const Json& token : about["tokens"].array()) {
    if (!token.is_integer() || token.integer() < 0 || token.integer() >= info.vocab)
      throw InputError(path + " is damaged: prefill again");
    tokens.push_back(token.integer());
  }
  if (int64_t(tokens.size()) > info.max_context) throw InputError(path + " is damaged: prefill again");
  rows.tokens = std::move(tokens);
  rows.is_long = about["long"].boolean();
  rows.farthest = about["farthest"].integer();
}

}  // namespace

int p3m_api_version(void) { return P3M_API_VERSION; }

p3m_bundle* p3m_bundle_open(const char* folder, char* error, size_t error_size) {
  return guarded<p3m_bundle*>(nullptr, error, error_size, [&] { return new p3m_bundle(required(folder, "the folder")); });
}

const char* p3m_bundle_manifest(const p3m_bundle* bundle) { return bundle ? bundle->manifest.c_str() : nullptr; }

int p3m_bundle_verify(
    const p3m_bundle* bundle, int (*progress)(void*, int64_t, int64_t), void* user, char* error, size_t error_size) {
  return guarded(-1, error, error_size, [&] {
    required(bundle, "the bundle")->bundle.verify([&](int64_t done, int64_t total) {
      return !progress || progress(user, done, total) != 0;
    });
    return 0;
  });
}

void p3m_bundle_close(p3m_bundle* bundle) { delete bundle; }

p3m_session* p3m_session_open(const char* folder, const char* options, char* error, size_t error_size) {
  return guarded<p3m_session*>(nullptr, error, error_size, [&] {
    const Bundle bundle(required(folder, "the folder"));
    auto parts = bundle.parts();
    const Json given = options ? Json::parse(options, "the options") : Json();
    auto engine = phi3mobile::PteEngine::open(bundle, given);
    p3m_model* model = engine->model();
    std::unique_ptr<phi3mobile::Tower> tower;
    if (!bundle.vision().is_null()) {
      tower = std::make_unique<phi3mobile::PteTower>(bundle, phi3mobile::text_option(given, "cache"));
    }
    auto pictures = pictures_over(std::move(tower), phi3mobile::integer_option(given, "num_crops"));
    return new p3m_session(bundle.program_hash(), std::move(parts), std::move(engine), std::move(pictures), model);
  });
}

p3m_session* p3m_session_open_with(const char* folder, const p3m_engine* engine, char* error, size_t error_size) {
  return guarded<p3m_session*>(nullptr, error, error_size, [&] { return open_with(folder, engine, nullptr); });
}

p3m_session* p3m_session_open_seeing(
    const char* folder, const p3m_engine* engine, const p3m_tower* tower, char* error, size_t error_size) {
  return guarded<p3m_session*>(
      nullptr, error, error_size, [&] { return open_with(folder, engine, required(tower, "the tower")); });
}

int64_t p3m_session_picture(p3m_session* session, const uint8_t* pixels, int64_t width, int64_t height, int64_t stride,
    int channels, int orientation, char* error, size_t error_size) {
  return guarded(int64_t(-1), error, error_size, [&] {
    return required(session, "the session")
        ->session.picture(phi3mobile::upright(pixels, width, height, stride, channels, orientation));
  });
}

int p3m_session_keep_features(p3m_session* session, const char* folder, const char* runtime, char* error, size_t error_size) {
  return guarded(-1, error, error_size, [&] {
    p3m_session& s = *required(session, "the session");
    s.session.keep_features(required(folder, "the folder"), s.model ? p3m_runtime_version() : required(runtime, "the runtime"));
    return 0;
  });
}

int p3m_session_start(p3m_session* session, const char* request, char* error, size_t error_size) {
  return guarded(-1, error, error_size, [&] {
    required(session, "the session")->session.start(Json::parse(required(request, "the request"), "the request"));
    return 0;
  });
}

const char* p3m_guidance(const char* path, char* error, size_t error_size) {
  return guarded<const char*>(nullptr, error, error_size, [&] {
    phi3mobile::use_llguidance(path);
    return phi3mobile::llguidance_version();
  });
}

int p3m_session_next(p3m_session* session, const char** text, size_t* size) {
  static const std::string kNull = "the session is null: give one";
  const std::string* shown = &kNull;
  int kind = P3M_EVENT_ERROR;
  if (session) {
    char error[2000] = "";
    kind = guarded(int(P3M_EVENT_ERROR), error, sizeof error, [&] {
      Event event = session->session.next();
      session->shown = std::move(event.text);
      switch (event.kind) {
        case Event::Kind::Text:
          return int(P3M_EVENT_TEXT);
        case Event::Kind::Note:
          return int(P3M_EVENT_NOTE);
        case Event::Kind::Progress:
          return int(P3M_EVENT_PROGRESS);
        case Event::Kind::ToolCall:
          return int(P3M_EVENT_TOOL_CALL);
        case Event::Kind::Done:
          break;
      }
      return int(P3M_EVENT_DONE);
    });
    if (kind == P3M_EVENT_ERROR) session->shown = error;
    shown = &session->shown;
  }
  if (text) *text = shown->c_str();
  if (size) *size = shown->size();
  return kind;
}

void p3m_session_cancel(p3m_session* session) {
  if (session) session->session.cancel();
}

void p3m_session_reset(p3m_session* session) {
  if (session) session->session.reset();
}

int64_t p3m_session_save(p3m_session* session, const char* path, char* error, size_t error_size) {
  return guarded(int64_t(-1), error, error_size, [&] {
    p3m_session& s = *required(session, "the session");
    if (!s.model) throw InputError("the application's engine keeps its own KV cache: the session can't save it");
    const std::string about = about_state(s);
    char reason[1000] = "";
    const int64_t size = p3m_save_state(s.model, required(path, "the path"), about.c_str(), reason, sizeof reason);
    if (size < 0) throw InputError(reason);
    return size;
  });
}

int64_t p3m_session_restore(p3m_session* session, const char* path, char* error, size_t error_size) {
  return guarded(int64_t(-1), error, error_size, [&] {
    p3m_session& s = *required(session, "the session");
    if (!s.model) throw InputError("the application's engine keeps its own KV cache: the session can't restore one");
    s.session.reset();
    char reason[1000] = "";
    const Json read = Json::parse(phi3mobile::state_about(required(path, "the path")), path);
    if (p3m_load_state(s.model, path, reason, sizeof reason)) throw InputError(reason);
    take_state(s, read, path);
    return int64_t(s.session.rows().tokens.size());
  });
}

void p3m_session_close(p3m_session* session) { delete session; }
