#include "p3m_messages.h"

#include "base/error.h"

#include <cstdio>
#include <memory>

namespace phi3mobile {

namespace {

constexpr int64_t kMost = 128000000;  // pixels that a session takes

struct Close {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

// The next number of a header, which has comments from # to the end of a line; -1: none.
int64_t number(std::FILE* file) {
  int c = std::fgetc(file);
  while (c == '#' || c == ' ' || (c >= '\t' && c <= '\r')) {
    const bool comment = c == '#';
    do {
      c = std::fgetc(file);
    } while (comment && c != '\n' && c != EOF);
  }
  if (c < '0' || c > '9') return -1;
  int64_t value = 0;
  for (; c >= '0' && c <= '9' && value <= kMost; c = std::fgetc(file)) value = 10 * value + (c - '0');
  return value;  // and one character after it is gone, as the format wants
}

struct Ppm {
  int64_t width, height;
  std::vector<uint8_t> rgb;
};

Ppm read_ppm(const std::string& path) {
  const std::unique_ptr<std::FILE, Close> file(std::fopen(path.c_str(), "rb"));
  if (!file) throw InputError(path + " can't be read: give a picture's file");
  const int first = std::fgetc(file.get()), kind = std::fgetc(file.get());
  if (first != 'P' || (kind != '5' && kind != '6')) {
    throw InputError(path + " is no PPM (P6) or PGM (P5): convert it, as `djpeg photo.jpg > photo.ppm` does");
  }
  const int64_t width = number(file.get()), height = number(file.get()), most = number(file.get());
  if (width < 1 || height < 1 || width > kMost || height > kMost || width * height > kMost || most != 255) {
    throw InputError(path + " has " + std::to_string(width) + " × " + std::to_string(height) + " pixels of 0 to " +
                     std::to_string(most) + "; give at most 128 megapixels of 0 to 255");
  }
  const size_t channels = kind == '6' ? 3 : 1, count = size_t(width * height);
  Ppm picture{width, height, std::vector<uint8_t>(3 * count)};
  uint8_t* to = picture.rgb.data();
  if (std::fread(to, channels, count, file.get()) != count) throw InputError(path + " is cut short: copy it again");
  for (size_t i = count; channels == 1 && i-- > 0;) to[3 * i] = to[3 * i + 1] = to[3 * i + 2] = to[i];
  return picture;
}

}  // namespace

int64_t shown(p3m_session* session, const std::string& path) {
  const Ppm picture = read_ppm(path);
  char error[1000] = "";
  const int64_t number =
      p3m_session_picture(session, picture.rgb.data(), picture.width, picture.height, 0, 3, 1, error, sizeof error);
  if (number < 0) throw InputError(path + ": " + error);
  return number;
}

Json message(const char* role, const std::string& content) {
  Json found{Json::Object()};
  found.set("role", role);
  found.set("content", content);
  return found;
}

Json question(const std::string& text, const std::vector<int64_t>& images) {
  if (images.empty()) return message("user", text);
  Json::Array parts;
  const auto part = [&](const char* type, Json value) {
    Json found{Json::Object()};
    found.set("type", type);
    found.set(type, std::move(value));
    parts.push_back(std::move(found));
  };
  for (const int64_t number : images) part("image", number);
  part("text", text);
  Json found{Json::Object()};
  found.set("role", "user");
  found.set("content", std::move(parts));
  return found;
}

}  // namespace phi3mobile
