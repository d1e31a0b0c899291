#include "text/marks.h"

namespace phi3mobile {

std::string with_spaces(std::string_view piece) {
  std::string text;
  size_t done = 0;
  for (size_t at; (at = piece.find(kMark, done)) != piece.npos; done = at + kMark.size()) {
    text.append(piece, done, at - done);
    text += ' ';
  }
  return text.append(piece, done);
}

namespace {

int hexadecimal(char digit) {
  if (digit >= '0' && digit <= '9') return digit - '0';
  const char low = char(digit | 32);
  return low >= 'a' && low <= 'f' ? low - 'a' + 10 : -1;
}

}  // namespace

std::string sentencepiece_bytes(std::string_view piece) {
  if (piece.size() == 6 && piece.substr(0, 3) == "<0x" && piece[5] == '>') {
    const int high = hexadecimal(piece[3]), low = hexadecimal(piece[4]);
    if (high >= 0 && low >= 0) return std::string(1, char(high << 4 | low));
  }
  return with_spaces(piece);
}

bool may_cut_at_marks(const Texts& pieces) {
  if (pieces.find(kMark) == Texts::kNone) return false;
  for (uint32_t number = 0; number < pieces.size(); ++number) {
    const std::string_view piece = pieces[number];
    for (size_t at = piece.find(kMark); at != piece.npos; at = piece.find(kMark, at + kMark.size())) {
      if (at > 0 && (at < kMark.size() || piece.substr(at - kMark.size(), kMark.size()) != kMark)) return false;
    }
  }
  return true;
}

void cut_at_marks(std::string_view text, std::vector<std::string_view>& words) {
  size_t start = 0;
  for (size_t at = text.find(kMark); at != text.npos; at = text.find(kMark, at + kMark.size())) {
    const std::string_view before = text.substr(start, at - start);
    if (before.empty() || (before.size() >= kMark.size() && before.substr(before.size() - kMark.size()) == kMark)) continue;
    words.push_back(before);
    start = at;
  }
  if (start < text.size()) words.push_back(text.substr(start));
}

}  // namespace phi3mobile
