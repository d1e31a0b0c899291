// ▁, which stands for a space in sentencepiece's vocabularies.
#pragma once

#include "text/tables.h"

#include <string>
#include <string_view>
#include <vector>

namespace phi3mobile {

constexpr std::string_view kMark = "\xE2\x96\x81";

std::string with_spaces(std::string_view piece);  // for its marks
// What a piece stands for: <0x41> for a byte.
std::string sentencepiece_bytes(std::string_view piece);

// Whether ▁ is a piece and none has ▁ after another character: then no merge crosses such a place, and Llama's texts, which
// its vocabulary sees as one word, can be cut there.
bool may_cut_at_marks(const Texts& pieces);

// Words, each ▁s and what follows them up to the next ▁.
void cut_at_marks(std::string_view text, std::vector<std::string_view>& words);

}  // namespace phi3mobile
