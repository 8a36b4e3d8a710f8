#include "memory/limiting_allocator.h"

#include <fmt/format.h>

#include "refrain/torch_error.h"

namespace refrain {
namespace {

std::string in_words(size_t bytes) {
  std::string text = std::to_string(bytes) + " bytes";
  if (bytes >= 1024 && bytes <= static_cast<size_t>(LimitingAllocator::kNoLimit))
    text += " (" + format_bytes(static_cast<Bytes>(bytes)) + ")";
  return text;
}

[[noreturn]] void refuse(size_t bytes, Bytes used, Bytes limit) {
  const Bytes requested = bytes <= static_cast<size_t>(LimitingAllocator::kNoLimit - used)
                              ? static_cast<Bytes>(bytes)
                              : LimitingAllocator::kNoLimit - used;
  throw OutOfMemory(
      fmt::format(
          "[refrain::memory] out of memory: requested {}, in use {}, limit {}; free tensors, checkpoint more, or raise the limit",
          in_words(bytes), in_words(static_cast<size_t>(used)), in_words(static_cast<size_t>(limit))),
      OutOfMemoryReason::kMemoryLimit,
      {.requested = requested, .in_use = used, .limit = limit, .min_limit = used + requested});
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
  const auto fits_in = [&](Bytes limit) {
    // a difference, because the sum of the two could overflow
    return used <= limit && bytes <= static_cast<size_t>(limit - used);
  };
  Bytes limit = 0;
  do {
    limit = limit_.load();
    bool fits = fits_in(limit);
    for (auto* relief = relief_.load(); relief && !fits && bytes <= static_cast<size_t>(kNoLimit - used);) {
      relief->make_room(used + static_cast<Bytes>(bytes) - limit, static_cast<Bytes>(bytes), limit);
      used = in_use_.load();
      limit = limit_.load();
      fits = fits_in(limit);
    }
    if (!fits) refuse(bytes, used, limit);
  } while (!in_use_.compare_exchange_weak(used, used + static_cast<Bytes>(bytes)));
  const Bytes level = used + static_cast<Bytes>(bytes);
  if (level > mark_.load(std::memory_order_relaxed)) raise_mark(level);
}

void LimitingAllocator::raise_mark(Bytes level) {
  for (Bytes mark = mark_.load(); level > mark;)
    if (mark_.compare_exchange_weak(mark, level)) break;
  if (auto* relief = relief_.load()) relief->rose();
}

void LimitingAllocator::set_relief(Relief* relief) {
  relief_.store(relief);
  if (!relief) mark_.store(kNoLimit);
}

void LimitingAllocator::tell_limit_lowered() {
  if (auto* relief = relief_.load()) relief->limit_lowered();
}

}  // namespace refrain
