// Work shared among the process's pool of threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include <executorch/runtime/kernel/thread_parallel_interface.h>

namespace phi3mobile {

// work(first, end) over 0 ... count, shared among the threads, at least `grain` at a time; on the calling thread alone where
// that is all. False: the pool failed.
template <class Work>
bool share(int64_t count, int64_t grain, const Work& work) {
  if (count > grain) return executorch::extension::parallel_for(0, count, grain, work);
  if (count > 0) work(0, count);
  return true;
}

// The same in many pieces that threads take as they come free, smaller towards the end: a phone's cores are not alike, and a
// computer's have other work. Up to `worth` items are not shared at all, and an eighth of them is the smallest piece.
template <class Work>
void share_in_turns(int64_t count, int64_t worth, const Work& work) {
  const int64_t threads = executorch::extension::get_thread_count();
  if (count <= worth || threads < 2) {
    if (count > 0) work(0, count);
    return;
  }
  std::atomic<int64_t> next{0};
  share(threads, 1, [&](int64_t, int64_t) {
    for (int64_t first = next; first < count;) {
      const int64_t end = std::min(count, first + std::max(1 + worth / 8, (count - first) / (2 * threads)));
      if (!next.compare_exchange_weak(first, end)) continue;
      work(first, end);
      first = next;
    }
  });
}

}  // namespace phi3mobile
