#include "text/files.h"

#include "base/error.h"
#include "base/utf8.h"

#include <filesystem>
#include <fstream>

namespace phi3mobile {

namespace fs = std::filesystem;

std::string folder_of(const std::string& path) { return fs::path(path).parent_path().string(); }

Json read_object(const std::string& path) {
  std::error_code failed;
  if (!fs::exists(path, failed)) return Json(Json::Object());
  Json value;
  try {
    value = Json::parse(read_file(path), "it");
  } catch (const InputError& error) {
    throw InputError(path + " can't be read (" + error.what() + "); download the folder again");
  }
  if (!value.is_object()) throw InputError(path + " must hold a JSON object; download the folder again");
  return value;
}

namespace {

void name(const Json& token, const std::string& path, std::set<std::string>& named) {
  if (token.is_object() && !token.has("content")) refuse_damaged(path, "a token lacks \"content\"");
  const Json& text = token.is_object() ? token["content"] : token;
  if (text.is_string() && !text.string().empty()) named.insert(text.string());
}

}  // namespace

std::set<std::string> named_tokens(const std::string& folder) {
  std::set<std::string> named;
  for (const char* file : {"tokenizer_config.json", "special_tokens_map.json"}) {
    const std::string path = folder + "/" + file;
    const Json config = read_object(path);
    for (const char* role : {"bos", "eos", "unk", "sep", "pad", "cls", "mask"}) {
      name(config[std::string(role) + "_token"], path, named);
    }
    for (const char* several : {"additional_special_tokens", "extra_special_tokens"}) {
      const Json& tokens = config[several];
      if (tokens.is_object()) {
        for (const auto& [role, token] : tokens.object()) name(token, path, named);
      } else if (tokens.is_array()) {
        for (const Json& token : tokens.array()) name(token, path, named);
      } else if (!tokens.is_null()) {
        refuse_damaged(path, std::string(several) + " is no list");
      }
    }
  }
  return named;
}

void refuse_damaged(const std::string& path, const std::string& why) {
  std::string reason;
  for (const char c : why) {
    const bool space = c == ' ' || (c >= '\t' && c <= '\r');
    if (!space) reason += c;
    if (space && !reason.empty() && reason.back() != ' ') reason += ' ';
  }
  reason = reason.substr(0, 200);
  throw InputError(path + ": damaged or not a tokenizer (" + replaced_utf8(reason) + "); download or export it again");
}

}  // namespace phi3mobile
