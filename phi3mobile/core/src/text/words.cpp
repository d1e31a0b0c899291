#include "text/words.h"

namespace phi3mobile {

void WordModel::encode(const std::vector<std::string_view>& words, std::vector<int64_t>& ids) const {
  const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  Words own;  // while another thread has the common memory
  Words& known = lock ? known_ : own;
  for (const std::string_view word : words) {
    const int32_t* found = nullptr;
    size_t count = 0;
    if (known.find(word, &found, &count)) {
      ids.insert(ids.end(), found, found + count);
      continue;
    }
    const std::vector<int32_t> spelled = spell(word);
    known.add(word, spelled.data(), spelled.size());
    ids.insert(ids.end(), spelled.begin(), spelled.end());
  }
}

}  // namespace phi3mobile
