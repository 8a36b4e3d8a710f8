#include "memory/limiting_allocator.h"

#include <c10/util/Exception.h>

namespace refrain {
namespace {

std::string in_words(uint64_t bytes) {
  std::string text = std::to_string(bytes) + " bytes";
  if (bytes >= 1024 && bytes <= static_cast<uint64_t>(LimitingAllocator::kNoLimit)) text += " (" + format_bytes(static_cast<Bytes>(bytes)) + ")";
  return text;
}

}  // namespace

void* LimitingAllocator::allocate(size_t bytes) {
  reserve(bytes);
  try {
    return below_.allocate(bytes);
  } catch (...) {
    in_use_.fetch_sub(static_cast<Bytes>(bytes));
    throw;
  }
}

void LimitingAllocator::deallocate(void* data, size_t bytes) noexcept {
  below_.deallocate(data, bytes);
  in_use_.fetch_sub(static_cast<Bytes>(bytes));
}

void LimitingAllocator::reserve(size_t bytes) {
  Bytes used = in_use_.load();
  Bytes limit = 0;
  do {
    limit = limit_.load();
    // a difference, because the sum of the two could overflow
    const bool fits = used <= limit && bytes <= static_cast<size_t>(limit - used);
    TORCH_CHECK_WITH(OutOfMemoryError, fits, "[refrain::memory] out of memory: requested ", in_words(bytes), ", in use ", in_words(used), ", limit ",
                     in_words(limit), "; free tensors, checkpoint more, or raise the limit");
  } while (!in_use_.compare_exchange_weak(used, used + static_cast<Bytes>(bytes)));
}

}  // namespace refrain
