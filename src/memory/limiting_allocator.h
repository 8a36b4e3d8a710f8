#pragma once

#include <atomic>
#include <limits>

#include "memory/sized_allocator.h"
#include "refrain/bytes.h"

namespace refrain {

/// Refuses to exceed a limit, unless a `Relief` makes room.
///
/// Bytes are reserved before the layer below allocates and given up after it has freed, so the count of the layers
/// below never exceeds the limit, whatever the threads do.
/// Cost: one compare-exchange and a load an allocation, one atomic operation a release.
class LimitingAllocator final : public SizedAllocator {
 public:
  static constexpr Bytes kNoLimit = std::numeric_limits<Bytes>::max();

  /// Makes room before the limit would be exceeded. Called without a lock, on the thread that allocates.
  class Relief {
   public:
    /// Frees something, or throws: then the allocation fails with that. May be called repeatedly for the rest.
    /// @param missing, requested, limit  bytes, > 0.
    virtual void make_room(Bytes missing, Bytes requested, Bytes limit) = 0;
    /// The level has risen above the mark, which is there now. Called like `make_room`.
    virtual void rose() noexcept = 0;
    /// The limit may have become lower. Called like `make_room`.
    virtual void limit_lowered() noexcept = 0;

   protected:
    ~Relief() = default;
  };

  explicit LimitingAllocator(SizedAllocator& below) : below_(below) {}

  /// @throws c10::OutOfMemoryError  naming requested bytes, bytes in use and limit; nothing has been allocated.
  void* allocate(size_t bytes) override;
  void deallocate(void* data, size_t bytes) noexcept override;

  /// Sets the limit, >= 0, and returns the old one. Below the bytes in use, it refuses everything until enough is
  /// freed.
  Bytes set_limit(Bytes limit) { return limit_.exchange(limit); }
  Bytes limit() const { return limit_.load(); }

  /// Sets the relief; null for none. @param relief  lives until no allocation that saw it is under way: forever, to be
  /// safe.
  void set_relief(Relief* relief);
  /// Sets the mark: the highest level since, or `mark` itself. The relief hears of levels above it. Only with a relief.
  /// @return the former mark.
  Bytes set_mark(Bytes mark) { return mark_.exchange(mark); }
  /// Tells the relief.
  void tell_limit_lowered();
  Bytes in_use() const { return in_use_.load(); }

 private:
  void reserve(size_t bytes);
  void raise_mark(Bytes level);

  SizedAllocator& below_;
  std::atomic<Bytes> limit_{kNoLimit};
  std::atomic<Bytes> in_use_{0};
  std::atomic<Bytes> mark_{kNoLimit};
  std::atomic<Relief*> relief_{nullptr};
};

}  // namespace refrain
