// Messages whose content is a list of texts and images, and their prompt as ids: phi3mobile/session/content.py. An image is the
// number that Session::picture gave.
#pragma once

#include "base/json.h"
#include "text/tokenizer.h"

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace phi3mobile {

// Whether a content is a list with an image.
bool has_image(const Json& content);

// Messages with a role and a content each: a text, or a list with images; other lists are joined. InputError: what they are
// not.
Json::Array checked_messages(const Json& given);

// A conversation with its pictures told apart.
class Seen {
 public:
  // Numbers the images of checked messages. InputError: a part that is neither text nor image,
  // placeholders that don't fit.
  explicit Seen(const Json::Array& messages);

  // The prompt: ids of the texts between the pictures, each on its own with the bos that the tokenizer itself puts before a
  // text, as the model was trained, and `ids_of` of each image between them.
  std::vector<int64_t> encode(const Json& segments, const Tokenizer& tokenizer,
      const std::function<std::vector<int64_t>(const Json& image)>& ids_of) const;

 private:
  static constexpr size_t kText = std::string::npos;
  struct Part {
    std::string text;
    size_t number;  // of an image, from 1; kText: a text
  };
  struct Message {
    Json role;
    std::vector<Part> parts;
  };

  std::vector<Part> parts_of(size_t index, const Json& content);
  void check_numbers(size_t index, const std::vector<Part>& parts, size_t before) const;
  std::string unused() const;

  std::vector<Message> messages_;
  std::vector<Json> images_;
};

}  // namespace phi3mobile
