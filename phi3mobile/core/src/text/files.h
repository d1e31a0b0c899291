// The files of a tokenizer's folder.
#pragma once

#include "base/files.h"
#include "base/json.h"
#include "text/added.h"

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace phi3mobile {

std::string folder_of(const std::string& path);

// The JSON object in a checkpoint's file; empty if there is no such file. InputError for anything else.
Json read_object(const std::string& path);

// Texts that tokenizer_config.json or special_tokens_map.json calls its bos, eos, ... token: control tokens.
std::set<std::string> named_tokens(const std::string& folder);

// Adds those of added_tokens.json (text -> id), then of tokenizer_config.json's added_tokens_decoder, which also has the flags.
void read_added_tokens(const std::string& folder, std::map<std::string, AddedToken>& added);

// Ids before a text: `own` unless tokenizer_config.json says whether its bos is added (transformers' rule). id_of: of a token's
// text; below 0: there is none.
std::vector<int64_t> named_before(
    const std::string& folder, std::vector<int64_t> own, const std::function<int64_t(const std::string&)>& id_of);

// "<path>: damaged or not a tokenizer (<why>); download or export it again".
[[noreturn]] void refuse_damaged(const std::string& path, const std::string& why);

}  // namespace phi3mobile
