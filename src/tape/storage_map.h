#pragma once

#include <c10/core/StorageImpl.h>

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace refrain::tape {

struct Value;

/// Maps storages to values. Kernels sweep the caches between any two lookups, so the memory that a lookup reads counts:
/// four bytes a slot, next to each other, and the value's own only where they match. `key` of a value in the map is its
/// storage.
class StorageMap {
 public:
  Value* find(const c10::StorageImpl* storage) const {
    if (hashes_.empty()) return nullptr;
    const auto hash = hash_of(storage);
    for (size_t slot = hash & mask_;; slot = (slot + 1) & mask_) {
      if (hashes_[slot] == 0) return nullptr;
      if (hashes_[slot] == hash && key_of(values_[slot]) == storage) return values_[slot];
    }
  }

  /// Adds `storage`, which must not be in the map.
  void insert(const c10::StorageImpl* storage, Value* value) {
    if (2 * (size_ + 1) > hashes_.size()) grow();
    put(hash_of(storage), value);
    ++size_;
  }

  /// Removes `value`, which must be in the map as that of `storage`.
  void erase(const c10::StorageImpl* storage, const Value* value);

  size_t size() const { return size_; }

  /// Visits the values in the next `count` slots, from `cursor` on and around.
  template <typename Visit>
  void visit_some(size_t& cursor, size_t count, Visit&& visit) const {
    for (size_t i = 0; i < count && i < values_.size(); ++i)
      if (auto* value = values_[cursor++ % values_.size()]) visit(value);
  }

  template <typename Visit>
  void for_each(Visit&& visit) const {
    for (auto* value : values_)
      if (value) visit(value);
  }

 private:
  static c10::StorageImpl* key_of(const Value* value);  ///< in value.h

  static uint32_t hash_of(const c10::StorageImpl* storage) {
    const auto hash = static_cast<uint32_t>((reinterpret_cast<uintptr_t>(storage) * 0x9E3779B97F4A7C15ull) >> 32);
    return hash == 0 ? 1 : hash;
  }

  void put(uint32_t hash, Value* value) {
    size_t slot = hash & mask_;
    while (hashes_[slot] != 0) slot = (slot + 1) & mask_;
    hashes_[slot] = hash;
    values_[slot] = value;
  }

  void grow() {
    const size_t slots = hashes_.empty() ? 64 : 2 * hashes_.size();
    const auto hashes = std::exchange(hashes_, std::vector<uint32_t>(slots));
    const auto values = std::exchange(values_, std::vector<Value*>(slots));
    mask_ = slots - 1;
    for (size_t i = 0; i < hashes.size(); ++i)
      if (hashes[i] != 0) put(hashes[i], values[i]);
  }

  std::vector<uint32_t>
      hashes_;  ///< 0 for an empty slot; its number of slots is a power of two, at most half of them full
  std::vector<Value*> values_;
  size_t mask_ = 0;
  size_t size_ = 0;
};

}  // namespace refrain::tape
