// p3m: bundles from a shell, without Python.
#include "p3m.h"

#include <cstdio>
#include <cstring>

namespace {

constexpr const char* kUsage =
    "usage: p3m run BUNDLE PROMPT [option]...    one answer; statistics with --stats\n"
    "       p3m chat BUNDLE [option]...          a conversation; /reset, /undo, /image FILE, /save FILE, /load FILE, /exit\n"
    "       p3m verify BUNDLE                    compares every file's SHA-256\n"
    "       p3m tokens BUNDLE [TEXT]             ids of a text; without one, of each line of stdin, a JSON string\n"
    "       p3m bench MODEL.pte [key=value]... STEP...\n"
    "options: --system TEXT  --max-tokens N (0: no limit)  --temperature X  --top-k N  --top-p X  --min-p X  --seed N\n"
    "         --repetition-penalty X  --stop TEXT  --lookup  --raw (no chat template)  --slide  --threads N  --cache FOLDER\n"
    "         --experts-memory BYTES (of a mixture)  --image FILE.ppm (repeatable)  --num-crops N (of a picture at most)\n"
    "         --features FOLDER (what is seen of pictures is kept there)\n"
    "one of these says what the answer may be: --json-schema FILE  --regex PATTERN  --grammar FILE (Lark)\n"
    "         --additional-properties: JSON objects may have names that the schema does not declare\n";

struct Verb {
  const char* name;
  int (*main)(int, char**);
};

constexpr Verb kVerbs[] = {{"run", run}, {"chat", chat}, {"verify", verify}, {"tokens", tokens}, {"bench", bench}};

}  // namespace

int main(int count, char** arguments) {
  if (count == 2 && (!std::strcmp(arguments[1], "--help") || !std::strcmp(arguments[1], "-h")))
    return std::fputs(kUsage, stdout), 0;
  for (const Verb& verb : kVerbs) {
    if (count > 1 && !std::strcmp(arguments[1], verb.name)) return verb.main(count - 1, arguments + 1);
  }
  return std::fputs(kUsage, stderr), 2;
}
