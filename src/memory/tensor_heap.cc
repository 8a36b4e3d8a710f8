#include "memory/tensor_heap.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <string_view>

#include "base/fork.h"

namespace refrain {
namespace {

constexpr size_t kChunk = size_t{1} << 30;  ///< of addresses; pages are mapped when they are touched

bool is_wanted() {
#if defined(__SANITIZE_ADDRESS__)
  return false;
#else
  const char* choice = std::getenv("REFRAIN_TENSOR_HEAP");
  return !choice || std::string_view(choice) != "malloc";
#endif
}

size_t page_size() {
  static const auto size = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  return size;
}

size_t in_pages(size_t bytes) { return (bytes + page_size() - 1) / page_size() * page_size(); }

}  // namespace

Bytes TensorHeap::rounded(Bytes bytes) {
  return bytes < static_cast<Bytes>(kLeastBytes) ? bytes : static_cast<Bytes>(in_pages(static_cast<size_t>(bytes)));
}

TensorHeap::TensorHeap() { lock_at_fork(mutex_); }

TensorHeap* TensorHeap::get() {
  static TensorHeap* const instance = is_wanted() ? new TensorHeap : nullptr;
  return instance;
}

bool TensorHeap::grow(size_t bytes) {
  for (const size_t size : {std::max(bytes, kChunk), bytes}) {
    void* const mapped = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) continue;  // a limit of addresses
    const auto begin = reinterpret_cast<PageRuns::Address>(mapped);
    unused_.add(begin, begin + size);
    return true;
  }
  return false;
}

void TensorHeap::note() {
  free_.store(static_cast<Bytes>(free_runs_.bytes()), std::memory_order_relaxed);
  held_.store(given_ + static_cast<Bytes>(free_runs_.bytes()), std::memory_order_relaxed);
}

// Exactly as many as must: an allocator that returns whole pieces makes each step fault for them.
Bytes TensorHeap::give_back(Bytes most) {
  const auto before = free_runs_.bytes();
  most = std::max<Bytes>(most, 0);
  while (!free_runs_.empty()) {
    const Bytes excess = given_ + static_cast<Bytes>(free_runs_.bytes()) - most;
    if (excess <= 0) break;
    const auto run = free_runs_.oldest();
    const size_t size = std::min(run.size(), in_pages(static_cast<size_t>(excess)));
    if (::madvise(std::bit_cast<void*>(run.end - size), size, MADV_DONTNEED) != 0) break;  // they remain free pages
    free_runs_.remove(run.end - size, run.end);
  }
  note();
  return static_cast<Bytes>(before - free_runs_.bytes());
}

// A program that frees more than it needs again returns that once. One that works at its highest does so step for
// step: many pages, or few of them many times, each of which interrupts all threads.
void TensorHeap::judge(Bytes allocated, Bytes returned) {
  constexpr Bytes kTurns = 4;  // of all that it has, to be judged by
  lately_.allocated += allocated;
  lately_.returned += returned;
  ++lately_.allocations;
  lately_.returns += returned > 0 ? 1 : 0;
  if (lately_.allocated < kTurns * highest_) return;
  is_busy_ |= lately_.returned > lately_.allocated / 16 || lately_.returns > lately_.allocations / 32;
  lately_ = {};
}

void* TensorHeap::allocate(size_t bytes) {
  const size_t size = in_pages(bytes);
  const std::lock_guard lock(mutex_);
  auto run = free_runs_.best_fit(size);
  if (!run) run = unused_.best_fit(size, free_runs_);  // what it lacks is faulted in, and so much given back elsewhere
  if (!run && grow(size)) run = unused_.best_fit(size);
  if (!run) return nullptr;
  unused_.remove(run->begin, run->begin + size);
  free_runs_.remove(run->begin, run->begin + size);
  given_ += static_cast<Bytes>(size);
  highest_ = std::max(highest_, given_);
  // after, not before: free pages that serve are kept, and new ones have not been touched yet
  const Bytes returned = give_back(most_held(highest_, is_busy_));
  judge(static_cast<Bytes>(size), returned);
  return std::bit_cast<void*>(run->begin);
}

void TensorHeap::release(void* data, size_t bytes) noexcept {
  const auto begin = reinterpret_cast<PageRuns::Address>(data);
  const size_t size = in_pages(bytes);
  const std::lock_guard lock(mutex_);
  unused_.add(begin, begin + size);
  free_runs_.add(begin, begin + size);
  given_ -= static_cast<Bytes>(size);
  note();
}

void TensorHeap::hold_at_most(Bytes most) {
  const std::lock_guard lock(mutex_);
  give_back(most);
}

void TensorHeap::set_limit(Bytes limit) {
  const std::lock_guard lock(mutex_);
  highest_ = std::min(highest_, std::max(limit, given_));
  is_busy_ = false;
  lately_ = {};
}

}  // namespace refrain
