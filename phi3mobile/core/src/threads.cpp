// The process's one pool of threads, and what else is the process's: instruction set, operators, version.
#include "threads.h"

#include "attention_isa.h"
#include "phi3mobile.h"
#include "tiles.h"

#include <algorithm>
#include <thread>
#if defined(__linux__)
#include <sched.h>
#endif

#include <executorch/runtime/kernel/operator_registry.h>

// The runtime exports these without a header for them.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  size_t get_thread_count() const;
  bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool
extern "C" bool cpuinfo_initialize(void);
extern "C" uint32_t cpuinfo_get_cores_count(void);

namespace phi3mobile { std::atomic<int> open_models{0}; }  // namespace phi3mobile

namespace {

uint32_t usable_cores() {
  uint32_t cores = cpuinfo_initialize() ? cpuinfo_get_cores_count() : std::thread::hardware_concurrency();
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) cores = std::min<uint32_t>(cores, CPU_COUNT(&allowed));
#endif
  return std::max<uint32_t>(cores, 1);
}

}  // namespace

int p3m_threads(void) {
  auto* pool = executorch::extension::threadpool::get_threadpool();
  return pool ? int(pool->get_thread_count()) : 1;
}

int p3m_set_threads(int threads) {
  auto* pool = executorch::extension::threadpool::get_threadpool();
  if (!pool || (threads <= 0 && phi3mobile::open_models > 0)) return 0;
  const uint32_t wanted = threads > 0 ? uint32_t(threads) : usable_cores();
  if (pool->get_thread_count() == wanted) return 0;
  if (phi3mobile::open_models > 0) return -1;  // XNNPACK keeps a pointer into the pool for every loaded method
  pool->_unsafe_reset_threadpool(wanted);
  return 0;
}

int p3m_use_isa(const char* isa) {
  if (!phi3mobile::use_isa(isa)) return -1;
  phi3mobile::use_tiles(isa);
  return 0;
}

const char* p3m_isa(void) { return phi3mobile::used_isa(); }

int p3m_has_operator(const char* name) { return executorch::runtime::registry_has_op_function(name); }

const char* p3m_runtime_version(void) { return P3M_RUNTIME_VERSION; }
