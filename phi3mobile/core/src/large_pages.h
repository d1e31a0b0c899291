// Weights that are read over and over from a mapped file: in large pages where the system has them for files (Linux with ext4
// or xfs), for a token reads so much that looking up 4 KB pages takes a tenth of its time.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace phi3mobile {

constexpr size_t kWorthLargePages = 4 << 20;  // less need not hold one that is aligned

// To be said before the bytes are first read: pages that the cache has already stay as they are.
inline void want_large_pages(const void* at, size_t size) {
#if defined(MADV_HUGEPAGE)
  if (size < kWorthLargePages) return;
  const auto page = uintptr_t(sysconf(_SC_PAGESIZE)), first = uintptr_t(at) / page * page;
  madvise(reinterpret_cast<void*>(first), uintptr_t(at) + size - first, MADV_HUGEPAGE);  // advice: failing costs nothing
#else
  (void)at, (void)size;
#endif
}

}  // namespace phi3mobile
