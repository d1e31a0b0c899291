// p3m verify and p3m tokens: of a bundle, without its model.
#include "p3m.h"
#include "p3m_arguments.h"

#include <memory>

using namespace phi3mobile;

int verify(int count, char** given) {
  return told([&] {
    const Arguments arguments = parsed(count, given, 1, 1);
    char error[2000] = "";
    const std::unique_ptr<p3m_bundle, Close> bundle(p3m_bundle_open(arguments.plain.front().c_str(), error, sizeof error));
    if (!bundle || p3m_bundle_verify(bundle.get(), nullptr, nullptr, error, sizeof error)) throw std::invalid_argument(error);
    std::printf("every file is as it was made\n");
    return 0;
  });
}

int tokens(int count, char** given) {
  return told([&] {
    const Arguments arguments = parsed(count, given, 1, 2);
    char error[2000] = "";
    const std::unique_ptr<p3m_tokenizer, Close> tokenizer(
        p3m_tokenizer_open(arguments.plain.front().c_str(), error, sizeof error));
    if (!tokenizer) throw std::invalid_argument(error);
    const auto show = [&](const std::string& text) {
      std::vector<int64_t> ids;
      int64_t found = 0;
      do {  // first it is counted
        ids.resize(size_t(found));
        found = p3m_encode(tokenizer.get(), text.data(), text.size(), 1, ids.data(), ids.size(), error, sizeof error);
        if (found < 0) throw std::invalid_argument(error);
      } while (size_t(found) > ids.size());
      for (int64_t i = 0; i < found; ++i) std::printf("%s%lld", i ? " " : "", static_cast<long long>(ids[size_t(i)]));
      std::printf("\n");
    };
    if (arguments.plain.size() == 2) return show(arguments.plain[1]), 0;
    for (std::string line; read_line(&line);) {
      const Json text = Json::parse(line, "a line");
      if (!text.is_string())
        throw std::invalid_argument("a line is " + text.dump().substr(0, 80) + "; it must be a JSON string");
      show(text.string());
    }
    return 0;
  });
}
