#include "memory/tensor_heap.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "base/fork.h"

namespace refrain {

struct TensorHeap::Functions {
  void* (*memalign)(size_t alignment, size_t bytes) = nullptr;
  void (*free)(void* data) = nullptr;
  int (*get_property)(const char* name, size_t* value) = nullptr;
  void (*release_to_system)(size_t bytes) = nullptr;

  static const Functions* load();
};

namespace {

constexpr size_t kAlignment = 64;

bool is_wanted() {
#if defined(__SANITIZE_ADDRESS__)
  return false;
#else
  const char* choice = std::getenv("REFRAIN_TENSOR_HEAP");
  return !choice || std::string_view(choice) != "malloc";
#endif
}

template <typename T>
bool find(void* library, const char* name, T& function) {
  function = reinterpret_cast<T>(dlsym(library, name));
  return function != nullptr;
}

void tune(void* library) {
  // glibc's heap grows by sbrk, too: in each other's way neither could shrink
  bool* skips_sbrk = nullptr;
  if (find(library, "_ZN60FLAG__namespace_do_not_use_directly_use_DECLARE_bool_instead22FLAGS_malloc_skip_sbrkE", skips_sbrk))
    *skips_sbrk = true;
  // page faults are what giving back costs, and by default each tensor of 64 MiB that is freed goes back
  double* release_rate = nullptr;
  if (find(library, "_ZN62FLAG__namespace_do_not_use_directly_use_DECLARE_double_instead27FLAGS_tcmalloc_release_rateE", release_rate))
    *release_rate = 0.0;
  // what threads keep for themselves can neither serve others nor be given back
  int (*set_property)(const char*, size_t) = nullptr;
  if (find(library, "MallocExtension_SetNumericProperty", set_property))
    set_property("tcmalloc.max_total_thread_cache_bytes", 1 << 20);
}

}  // namespace

const TensorHeap::Functions* TensorHeap::Functions::load() {
  if (!is_wanted()) return nullptr;
  void* library = nullptr;
  for (const char* name : {"libtcmalloc_minimal.so.4", "libtcmalloc_minimal.so"}) {
    library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (library) break;
  }
  if (!library) return nullptr;
  static Functions found;
  const bool is_whole = find(library, "tc_memalign", found.memalign) && find(library, "tc_free", found.free) &&
                        find(library, "MallocExtension_GetNumericProperty", found.get_property) &&
                        find(library, "MallocExtension_ReleaseToSystem", found.release_to_system);
  if (!is_whole) return nullptr;
  // the program's own `malloc` is left as it is, if it is this one
  if (!dlsym(RTLD_DEFAULT, "tc_malloc")) tune(library);
  return &found;
}

TensorHeap::TensorHeap(const Functions& functions) : functions_(functions) {
  lock_at_fork(ForkOrder::kHeap, mutex_);
}

TensorHeap* TensorHeap::get() {
  static TensorHeap* instance = []() -> TensorHeap* {
    const auto* functions = Functions::load();
    return functions ? new TensorHeap(*functions) : nullptr;
  }();
  return instance;
}

Bytes TensorHeap::property(const char* name) const {
  size_t value = 0;
  functions_.get_property(name, &value);
  return static_cast<Bytes>(value);
}

Bytes TensorHeap::held() const { return property("generic.heap_size") - property("tcmalloc.pageheap_unmapped_bytes"); }

Bytes TensorHeap::free() const { return property("tcmalloc.pageheap_free_bytes"); }

void* TensorHeap::allocate(size_t bytes) {
  void* data = functions_.memalign(kAlignment, bytes);
  if (!data) return nullptr;
  const Bytes pages = rounded(static_cast<Bytes>(bytes));
  const Bytes given = given_.fetch_add(pages, std::memory_order_relaxed) + pages;
  Bytes highest = highest_.load(std::memory_order_relaxed);
  while (given > highest && !highest_.compare_exchange_weak(highest, given, std::memory_order_relaxed)) continue;
  // after, not before: free pages that serve are not given back, and what is new has not been touched yet
  hold_at_most(most_held(std::max(highest, given)));
  return data;
}

void TensorHeap::release(void* data, size_t bytes) noexcept {
  given_.fetch_sub(rounded(static_cast<Bytes>(bytes)), std::memory_order_relaxed);
  functions_.free(data);
}

void TensorHeap::set_limit(Bytes limit) {
  const Bytes least = std::max(limit, given_.load());
  Bytes highest = highest_.load();
  while (highest > least && !highest_.compare_exchange_weak(highest, least)) continue;
}

void TensorHeap::hold_at_most(Bytes most) {
  if (held() <= most) return;
  const std::lock_guard lock(mutex_);
  const Bytes before = held();
  const Bytes over = std::min(before - most, free());
  if (over <= 0) return;
  functions_.release_to_system(static_cast<size_t>(over + credit_));
  credit_ = std::max<Bytes>(before - held() - over, 0);
}

}  // namespace refrain
