// Runs a .pte without Python, for a phone's shell or an emulator: run_pte MODEL.pte LOGITS TOKEN... writes float32 [T, V].
//   cmake --build build/native --target run_pte
#include "phi3mobile.h"

#include <cstdio>
#include <cstdlib>
#include <vector>

int main(int count, char** arguments) {
  if (count < 4) return std::fprintf(stderr, "usage: run_pte MODEL.pte LOGITS TOKEN...\n"), 2;
  std::vector<int64_t> tokens;
  for (int i = 3; i < count; ++i) tokens.push_back(std::atoll(arguments[i]));
  char error[2000];
  p3m_model* model = p3m_open(arguments[1], nullptr, 0, error, sizeof error);
  if (!model) return std::fprintf(stderr, "%s\n", error), 1;
  // The first half at once, the others one by one: prefill and decode.
  std::FILE* file = std::fopen(arguments[2], "wb");
  if (!file) return std::fprintf(stderr, "%s can't be written\n", arguments[2]), 1;
  const int64_t all = tokens.size(), prefill = (all + 1) / 2;
  for (int64_t position = 0, chunk = prefill; position < all; position += chunk, chunk = 1) {
    if (p3m_forward(model, tokens.data() + position, chunk, position, nullptr)) {
      return std::fprintf(stderr, "%s\n", p3m_error(model)), 1;
    }
    int64_t rows, vocab;
    const float* logits = p3m_logits(model, &rows, &vocab);
    std::fwrite(logits, sizeof(float), rows * vocab, file);
  }
  const bool written = std::fclose(file) == 0;
  p3m_close(model);
  return written ? 0 : 1;
}
