#include "text/files.h"

#include "base/error.h"
#include "base/utf8.h"
#include "text/backend.h"
#include "text/config.h"
#include "text/unicode.h"

#include <charconv>
#include <filesystem>

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

// Flags by name; without them, what is named or spelled <|like this|> is a control token.
void read_added_tokens(const std::string& folder, std::map<std::string, AddedToken>& added) {
  const std::set<std::string> named = named_tokens(folder);
  const auto put = [&](const std::string& text, int64_t id, bool special, bool lstrip, bool rstrip) {
    AddedToken token;
    token.text = text;
    token.id = checked_id(id);
    token.lstrip = lstrip;
    token.rstrip = rstrip;
    token.special = !without_leading_space(text).empty() && (special || named.count(text));
    added[text] = token;
  };
  std::string path = folder + "/added_tokens.json";
  try {
    if (is_file(path)) {
      const Json tokens = Json::parse(read_file(path), "it");
      if (!tokens.is_object()) throw Damaged("no object");
      for (const auto& [text, id] : tokens.object()) {
        const bool tag = text.substr(0, 2) == "<|" && text.size() >= 2 && text.substr(text.size() - 2) == "|>";
        put(text, integer_in(tokens, text), tag, false, false);
      }
    }
    path = folder + "/tokenizer_config.json";
    const Json config = read_object(path);
    const Json& decoder = config["added_tokens_decoder"];
    if (decoder.is_null()) return;
    if (!decoder.is_object()) throw Damaged("added_tokens_decoder is no object");
    for (const auto& [index, entry] : decoder.object()) {
      int64_t id = -1;
      const auto [end, failed] = std::from_chars(index.data(), index.data() + index.size(), id);
      if (failed != std::errc() || end != index.data() + index.size()) throw Damaged("the id of a token is no number");
      put(text_in(entry, "content"), id, flag_in(entry, "special"), flag_in(entry, "lstrip"), flag_in(entry, "rstrip"));
    }
  } catch (const Damaged& error) {
    refuse_damaged(path, error.what());
  } catch (const InputError& error) {
    if (std::string_view(error.what()).substr(0, 3) == "it ") refuse_damaged(path, error.what());
    throw;
  }
}

std::vector<int64_t> named_before(
    const std::string& folder, std::vector<int64_t> own, const std::function<int64_t(const std::string&)>& id_of) {
  const Json config = read_object(folder + "/tokenizer_config.json");
  if (!config.has("add_bos_token") && !config.has("add_eos_token")) return own;
  const Json &adds = config["add_bos_token"], &named = config["bos_token"];
  const Json& bos = named.is_object() ? named["content"] : named;
  if (!adds.is_bool() || !adds.boolean() || !bos.is_string() || bos.string().empty()) return {};
  const int64_t id = id_of(bos.string());
  return id < 0 ? std::vector<int64_t>() : std::vector<int64_t>{id};
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
