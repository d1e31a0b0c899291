// Sessions, bundles and states under the sanitizers, without the runtime:
//   core_check fuzz FOLDER SECONDS   damaged manifests, tokenizers, states and requests: an InputError, or an answer
//   core_check pictures FOLDER SECONDS   pictures of any size, requests and kept features, damaged; FOLDER's model sees
//   core_check guided FOLDER SECONDS LIBRARY   damaged schemas, regexes and grammars; LIBRARY: llguidance's
//   core_check threads FOLDER SECONDS   two sessions in two threads, each cancelled all the time from a third
// FOLDER: a bundle; its program is not run. It is copied before it is damaged.
#include "base/error.h"
#include "base/files.h"
#include "base/utf8.h"
#include "bundle.h"
#include "chain_engine.h"
#include "guide/llguidance.h"
#include "session/session.h"
#include "state.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace fs = std::filesystem;
using namespace phi3mobile;

namespace {

using Clock = std::chrono::steady_clock;

std::unique_ptr<Session> opened(const std::string& folder) {
  const Bundle bundle(folder);
  const EngineInfo info = bundle.info();
  if (info.vocab > 1 << 20 || info.max_context > 1 << 20 || info.max_chunk > 1 << 20) throw InputError("too large to be tried");
  auto tower = bundle.tower();
  std::unique_ptr<Pictures> pictures;
  if (tower && tower->hidden * tower->rows > 1 << 20) throw InputError("too large to be tried");
  if (tower) pictures = std::make_unique<Pictures>(std::make_unique<ChainTower>(*std::move(tower)), std::nullopt);
  return std::make_unique<Session>(bundle.parts(), std::make_unique<ChainEngine>(info), std::move(pictures));
}

// Takes the whole answer; gives its text.
std::string answer(Session& session, const std::string& request) {
  session.start(Json::parse(request, "the request"));
  std::string text;
  for (;;) {
    const Event event = session.next();
    if (event.kind == Event::Kind::Done) return text;
    if (event.kind == Event::Kind::Text) text += event.text;
  }
}

const std::vector<std::string> kRequests = {
    R"({"prompt": "the end and the", "max_tokens": 12, "lookup": true})",
    R"({"messages": [{"role": "system", "content": "on"}, {"role": "user", "content": "there é 🙂"}], "max_tokens": 20,)"
    R"( "temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.05, "seed": 5, "stop": ["the", "nd"], "overflow": "slide"})",
};

std::string damaged(std::string text, std::mt19937_64& rng) {
  static const std::string parts[] = {
      "-1", "null", "[]", "{}", "\"\"", "1e9", "99999999999", "\xFF", "\\ud800", "{\"a\":", "}"};
  for (uint64_t n = 1 + rng() % 4; n > 0 && !text.empty(); --n) {
    const size_t at = rng() % text.size();
    switch (rng() % 5) {
      case 0:
        text[at] = char(rng());
        break;
      case 1:
        text.erase(at, 1 + rng() % 20);
        break;
      case 2:
        text.insert(at, parts[rng() % std::size(parts)]);
        break;
      case 3:
        text.resize(at);
        break;
      default:
        text.insert(at, text.substr(rng() % text.size(), rng() % 40));
        break;
    }
  }
  return text;
}

void write(const std::string& path, const std::string& text) {
  OutputFile file(path);
  file.write(text.data(), text.size());
  file.finish();
}

// Does what may be refused; 1 if it was.
template <class Work>
int refused(Work work) {
  try {
    work();
    return 0;
  } catch (const InputError& error) {
    if (std::string(error.what()).empty()) throw;
    return 1;
  }
}

int fuzz(const std::string& given, double seconds) {
  const std::string folder = fs::temp_directory_path() / ("core_check." + std::to_string(std::random_device()()));
  fs::copy(given, folder, fs::copy_options::recursive);
  const std::string manifest = read_file(folder + "/manifest.json"), vocabulary = read_file(folder + "/tokenizer.json");
  std::vector<uint8_t> cache(70000), other(70000);
  for (size_t i = 9000; i < 20000; ++i) cache[i] = uint8_t(i);
  const std::string state = folder + "/state";
  save_state(state, R"({"tokens": [1, 2]})", {{cache.data(), cache.size()}});
  const std::string good = read_file(state);
  load_state(state, {{other.data(), other.size()}});
  if (other != cache) return std::fprintf(stderr, "a state does not come back\n"), 1;
  const auto session = opened(folder);
  std::mt19937_64 rng(1);
  long tried = 0, wrong = 0;
  for (const auto start = Clock::now(); std::chrono::duration<double>(Clock::now() - start).count() < seconds; ++tried) {
    wrong += refused([&] { answer(*session, damaged(kRequests[rng() % kRequests.size()], rng)); });
    write(state, damaged(good, rng));
    wrong += refused([&] {
      state_about(state);
      load_state(state, {{other.data(), other.size()}});
    });
    write(folder + "/manifest.json", damaged(manifest, rng));
    wrong += refused([&] { answer(*opened(folder), kRequests[rng() % kRequests.size()]); });
    write(folder + "/manifest.json", manifest);
    if (tried % 4) continue;
    // Its size is the manifest's: what is damaged is found by the reader.
    std::string bad = damaged(vocabulary, rng);
    bad.resize(vocabulary.size(), ' ');
    write(folder + "/tokenizer.json", bad);
    wrong += refused([&] { answer(*opened(folder), kRequests[rng() % kRequests.size()]); });
    write(folder + "/tokenizer.json", vocabulary);
  }
  fs::remove_all(folder);
  std::printf("%ld rounds, %ld refusals\n", tried, wrong);
  return wrong == 0;  // nothing refused: nothing was tried
}

// Some of the files in a folder.
long damage_files(const fs::path& folder, std::mt19937_64& rng) {
  long count = 0;
  if (!fs::exists(folder)) return count;
  for (const auto& one : fs::directory_iterator(folder)) {
    if (rng() % 2) continue;
    OutputFile file(one.path().string());
    const std::string text = damaged(read_file(one.path().string()), rng);
    file.write(text.data(), text.size());
    file.finish();
    ++count;
  }
  return count;
}

int pictures(const std::string& folder, double seconds) {
  static const std::string request =
      R"({"messages": [{"role": "user", "content": [{"type": "image", "image": 1}, {"type": "text", "text": "the <|image_1|> é"},)"
      R"( {"type": "text", "text": "and <|image_2|>"}, {"type": "image", "image": 2}]}], "max_tokens": 4, "lookup": true})";
  std::mt19937_64 rng(1);
  long tried = 0, wrong = 0, answered = 0, spoiled = 0;
  const fs::path features = fs::path(folder).parent_path() / "features";
  std::unique_ptr<Session> session;
  for (const auto start = Clock::now(); std::chrono::duration<double>(Clock::now() - start).count() < seconds; ++tried) {
    if (tried % 4 == 0) {
      session = opened(folder);
      session->keep_features(features.string(), "a check's");
      spoiled += damage_files(features, rng);
    }
    std::mt19937_64 drawn(rng() % 3 ? rng() % 8 : rng());  // often one that was seen before
    const auto size = [&] { return int64_t(1) << drawn() % 10 | int64_t(drawn() % 64); };
    const int64_t width = size(), height = size(), gap = drawn() % 3 ? 0 : int64_t(drawn() % 9);
    const int channels = drawn() % 2 ? 3 : 4;
    // No byte more than the picture has.
    std::vector<uint8_t> pixels(size_t((height - 1) * (channels * width + gap) + channels * width));
    for (uint8_t& value : pixels) value = uint8_t(drawn());
    wrong += refused(
        [&] { session->picture(upright(pixels.data(), width, height, channels * width + gap, channels, int(drawn() % 10))); });
    wrong += refused([&] { answer(*session, rng() % 2 ? request : damaged(request, rng)), ++answered; });
  }
  std::printf("%ld rounds, %ld refusals, %ld answers, %ld files damaged\n", tried, wrong, answered, spoiled);
  return wrong == 0 || answered == 0 || spoiled == 0;
}

const std::vector<std::string> kSchemas = {
    R"({"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}, "é": {"enum": [1, 2.5, null, {"k": [true]}]}}, "required":)"
    R"( ["a"], "patternProperties": {"^x-[^\"\\0]{2,3}$": {"minimum": 0.5}}, "$defs": {"b": {"oneOf": [{"const": "c"},)"
    R"( {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}]}}})",
    R"({"$id": "https://a.b/c?d", "allOf": [{"$ref": "c?d#/properties/p~1%41"}, {"$anchor": "x", "minProperties": 1}],)"
    R"( "properties": {"p/A": {"type": ["string", "null"], "pattern": "^(\\u{41}|[a\\-z])+?$"}}, "anyOf": [true, {"items": false}]})",
};
const std::vector<std::string> kTexts = {
    "(a|[^b-d]{2,3}\\x41)+?", "start: \"a\" x | /b+/ & ~/bb/\nx: %json {\"type\": \"null\"}\n"};

// What the core reads is damaged; llguidance, which is not built for the sanitizer, may refuse it.
int guided(const std::string& folder, double seconds) {
  const auto session = opened(folder);
  std::mt19937_64 rng(1);
  long tried = 0, wrong = 0;
  for (const auto start = Clock::now(); std::chrono::duration<double>(Clock::now() - start).count() < seconds; ++tried) {
    const bool text = rng() % 4 == 0;
    std::string what = damaged(text ? kTexts[rng() % kTexts.size()] : kSchemas[rng() % kSchemas.size()], rng);
    if (invalid_utf8(what) != what.size()) what = replaced_utf8(what);
    Json request{Json::Object()};
    request.set("prompt", "the end");
    request.set("max_tokens", 12);
    request.set("lookup", rng() % 2 == 0);
    request.set(!text ? "schema" : rng() % 2 ? "regex" : "grammar", what);
    wrong += refused([&] { answer(*session, request.dump()); });
  }
  std::printf("%ld rounds, %ld refusals\n", tried, wrong);
  return wrong == 0 || wrong == tried;
}

int threads(const std::string& folder, double seconds) {
  const std::string expected = answer(*opened(folder), kRequests[0]);
  std::atomic<bool> stop{false}, same{true};
  std::atomic<long> whole{0}, cut{0};
  std::vector<std::thread> all;
  for (int i = 0; i < 2; ++i) {
    all.emplace_back([&] {
      const auto session = opened(folder);
      std::thread storm([&] {
        while (!stop) {
          session->cancel();
          std::this_thread::sleep_for(std::chrono::microseconds(200));
        }
      });
      while (!stop) {
        const std::string text = answer(*session, kRequests[0]);
        if (expected.rfind(text, 0) != 0) same = false;
        ++(text == expected ? whole : cut);
      }
      storm.join();
    });
  }
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
  stop = true;
  for (auto& thread : all) thread.join();
  std::printf("%ld whole answers, %ld cut\n", whole.load(), cut.load());
  return !same || whole + cut == 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 4) return std::fprintf(stderr, "usage: core_check fuzz|pictures|guided|threads BUNDLE SECONDS [LIBRARY]\n"), 2;
  const double seconds = std::atof(arguments[3]);
  const std::string mode = arguments[1];
  if (count > 4) use_llguidance(arguments[4]);
  return mode == "fuzz"       ? fuzz(arguments[2], seconds)
         : mode == "pictures" ? pictures(arguments[2], seconds)
         : mode == "guided"   ? guided(arguments[2], seconds)
                              : threads(arguments[2], seconds);
}
