// The protocol's steps on a phone, without Python: p3m bench MODEL.pte [key=value]... STEP...
// Steps and printed lines are those of bench/steps.py. Keys: packed (file for packed weights), threads, chunk (most tokens of
// one forward), context, original (LongRoPE's switch; 0: none), cold (1: ask the system to drop the model from its file cache).
#include "input_pos.h"
#include "p3m.h"
#include "phi3mobile.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using phi3mobile::kLongRegime;
using Clock = std::chrono::steady_clock;
double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// One JSON line; the reader follows while the program runs.
void say(const std::string& fields) {
  const double t = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  std::printf("{%s, \"t\": %.3f}\n", fields.c_str(), t);
  std::fflush(stdout);
}

std::string number(double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

template <class T>
std::string list(const std::vector<T>& values) {
  std::string text;
  for (const T value : values) text += (text.empty() ? "" : ", ") + number(double(value));
  return "[" + text + "]";
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 32 ? ' ' : c;
  }
  return out + "\"";
}

// kB of a field of a /proc file, in bytes; -1: not there.
int64_t field(const char* path, const char* name) {
  int64_t found = -1;
  if (std::FILE* file = std::fopen(path, "r")) {
    char line[256];
    const size_t length = std::strlen(name);
    while (std::fgets(line, sizeof line, file)) {
      if (!std::strncmp(line, name, length) && line[length] == ':') found = std::atoll(line + length + 1) * 1024;
    }
    std::fclose(file);
  }
  return found;
}

std::string memory() {
  const struct {
    const char *key, *path, *name;
  } fields[] = {{"peak_bytes", "/proc/self/status", "VmHWM"}, {"resident_bytes", "/proc/self/status", "VmRSS"},
      {"anonymous_bytes", "/proc/self/status", "RssAnon"}, {"pss_bytes", "/proc/self/smaps_rollup", "Pss"},
      {"dirty_bytes", "/proc/self/smaps_rollup", "Private_Dirty"}};
  std::string text;
  for (const auto& one : fields) {
    const int64_t value = field(one.path, one.name);
    if (value >= 0) text += std::string(", \"") + one.key + "\": " + std::to_string(value);
  }
  return text;
}

// What the system has cached of a file it reads again from the storage, where it can be told.
void forget(const char* path) {
#ifdef POSIX_FADV_DONTNEED
  const int file = open(path, O_RDONLY);
  if (file >= 0) posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED), close(file);
#else
  (void)path;
#endif
}

struct Steps {
  p3m_model* model;
  int64_t vocab, context, chunk, original, back;  // back: tokens that positions may go back, -1: any number
  int64_t filled = 0, farthest = 0;
  bool is_long = false;

  int64_t argmax() {
    int64_t width;
    const float* last = p3m_logits(model, nullptr, &width);
    return std::max_element(last, last + width) - last;
  }

  bool goes_long(int64_t end) const { return original && end > original; }

  void run(const int64_t* tokens, int64_t count, int64_t position, int64_t end) {
    if (end > context) {
      throw std::runtime_error(std::to_string(end) + " positions do not fit the context of " + std::to_string(context));
    }
    for (int64_t at = 0; at < count; at += chunk) {
      const int64_t flag = goes_long(end) ? kLongRegime : 0;
      if (p3m_prefill(model, tokens + at, std::min(chunk, count - at), (position + at) | flag)) {
        throw std::runtime_error(p3m_error(model));
      }
      farthest = std::max(position + at ? farthest : 0, position + std::min(at + chunk, count));
    }
  }

  void fill(int64_t tokens, int64_t end) {
    std::vector<int64_t> prompt(tokens);
    uint64_t state = 1;
    for (int64_t& token : prompt) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      token = (state >> 33) % vocab;
    }
    int64_t start = std::min(filled, tokens);
    if (goes_long(end) != is_long || (back >= 0 && farthest - start > back)) start = 0;
    run(prompt.data() + start, tokens - start, start, end);
    filled = tokens, is_long = goes_long(end);
  }

  std::vector<double> tokens(int64_t depth, int64_t count) {
    fill(depth, depth + count);
    std::vector<double> times;
    int64_t token = 0;
    for (int64_t step = 0; step < count; ++step) {
      const auto start = Clock::now();
      run(&token, 1, depth + step, depth + count);
      token = argmax();
      times.push_back(since(start));
    }
    return times;
  }

  void step(const std::string& text) {
    std::vector<std::string> part{""};
    for (const char c : text) {
      if (c == ':')
        part.emplace_back();
      else
        part.back() += c;
    }
    const std::string name = part[0];
    const auto value = [&](size_t i) { return std::atoll(part[i].c_str()); };
    const auto is = [&](const char* wanted, size_t values) {
      if (name != wanted) return false;
      if (part.size() != values + 1) throw std::runtime_error("step " + text + ": wrong number of values");
      return true;
    };
    if (is("prefill", 2)) {
      for (int64_t round = 0; round < value(2); ++round) {
        filled = 0;
        const auto start = Clock::now();
        fill(value(1), value(1));
        argmax();
        say("\"kind\": \"prefill\", \"tokens\": " + part[1] + ", \"seconds\": " + number(since(start)));
      }
      say("\"kind\": \"memory\", \"tokens\": " + part[1] + memory());
    } else if (is("decode", 3)) {
      for (int64_t round = 0; round < value(3); ++round) {
        say("\"kind\": \"decode\", \"depth\": " + part[1] + ", \"seconds\": " + list(tokens(value(1), value(2))));
      }
      say("\"kind\": \"memory\", \"tokens\": " + std::to_string(value(1) + value(2)) + memory());
    } else if (is("sustain", 3)) {
      const auto start = Clock::now();
      for (int64_t total = 0; since(start) < std::atof(part[1].c_str());) {
        double took = 0;
        for (const double one : tokens(value(2), value(3))) took += one;
        total += value(3);
        say("\"kind\": \"sustain\", \"elapsed\": " + number(since(start)) + ", \"tokens\": " + part[3] +
            ", \"seconds\": " + number(took) + ", \"total\": " + std::to_string(total));
      }
    } else if (is("text", 2)) {
      std::vector<int64_t> prompt, said;
      for (const char* at = part[2].c_str(); *at;) {
        char* next;
        prompt.push_back(std::strtoll(at, &next, 10));
        if (next == at) throw std::runtime_error("step " + text + ": not numbers");
        at = *next == ',' ? next + 1 : next;
      }
      const int64_t length = prompt.size(), end = length + value(1);
      run(prompt.data(), length, 0, end);
      filled = 0;
      for (int64_t i = 0; i < value(1); ++i) {
        said.push_back(argmax());
        run(&said.back(), 1, length + i, end);
      }
      say("\"kind\": \"text\", \"tokens\": " + list(said));
    } else {
      throw std::runtime_error("step " + text + ": give one of prefill, decode, sustain, text");
    }
  }
};

}  // namespace

int bench(int count, char** arguments) {
  if (count < 2) return std::fprintf(stderr, "usage: p3m bench MODEL.pte [key=value]... STEP...\n"), 2;
  std::map<std::string, std::string> option;
  std::vector<std::string> steps;
  for (int i = 2; i < count; ++i) {
    const std::string text = arguments[i];
    const size_t at = text.find('=');
    if (at == std::string::npos)
      steps.push_back(text);
    else
      option[text.substr(0, at)] = text.substr(at + 1);
  }
  const auto whole = [&](const char* key) { return option.count(key) ? std::atoll(option[key].c_str()) : 0; };
  if (whole("cold")) forget(arguments[1]);
  char error[2000];
  const auto start = Clock::now();
  const char* packed = option.count("packed") ? option["packed"].c_str() : nullptr;
  p3m_model* model = p3m_open(arguments[1], packed, int(whole("threads")), error, sizeof error);
  if (!model) return say("\"kind\": \"error\", \"step\": \"load\", \"reason\": " + quoted(error)), 1;
  const char* states[] = {"heap", "created", "reused", "none"};
  say("\"kind\": \"load\", \"seconds\": " + number(since(start)) + ", \"packed\": \"" + states[p3m_packed_state(model)] +
      "\", \"threads\": " + std::to_string(p3m_threads()) + ", \"runtime\": \"" + p3m_runtime_version() + "\"" + memory());
  int64_t vocab = 0, context = 0, back = -1;
  p3m_metadata(model, "get_vocab_size", &vocab, 1);
  p3m_metadata(model, "get_max_context_len", &context, 1);
  p3m_metadata(model, "get_max_back", &back, 1);
  Steps run{model, vocab, whole("context") ? whole("context") : context, std::max<int64_t>(1, whole("chunk")),
      whole("original"), back};
  int code = 0;
  for (size_t i = 0; i < steps.size() && !code; ++i) {
    try {
      run.step(steps[i]);
    } catch (const std::exception& failed) {
      say("\"kind\": \"error\", \"step\": " + quoted(steps[i].substr(0, 60)) + ", \"reason\": " + quoted(failed.what()));
      code = 1;
    }
  }
  p3m_close(model);
  return code;
}
