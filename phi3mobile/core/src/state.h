// The runtime's memory in a file: a text about it, then the pages that are not zero. Every byte is covered by a checksum.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace phi3mobile {

using Memory = std::vector<std::pair<uint8_t*, size_t>>;

// Written whole or not at all; gives the file's size. InputError: it can't be written.
int64_t save_state(const std::string& path, const std::string& about, const Memory& memory);

// The text. InputError: no such file, or no state.
std::string state_about(const std::string& path);

// Fills memory as it was. InputError: a state of other memory, or a damaged file: what the memory holds then is unknown.
void load_state(const std::string& path, const Memory& memory);

}  // namespace phi3mobile
