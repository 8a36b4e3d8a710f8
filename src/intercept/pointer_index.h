#pragma once

#include <cstddef>
#include <memory>
#include <unordered_map>

namespace refrain::tape {

/// Finds elements of a list by a pointer: a linear scan while they are few, then a hash table. So `foreach` over
/// thousands of tensors takes linear time, and an operator with two arguments allocates nothing.
class PointerIndex {
 public:
  static constexpr size_t kNone = ~size_t{0};
  static constexpr size_t kMostScanned = 16;

  /// @param list  only grows at its end between two calls. @param key_of  the pointer of an element.
  /// @return position of the first element with this key, or `kNone`.
  template <typename List, typename KeyOf>
  size_t find(const List& list, const void* key, KeyOf&& key_of) {
    if (list.size() > kMostScanned) [[unlikely]]
      return find_in_table(list, key, key_of);
    for (size_t i = 0; i < list.size(); ++i)
      if (key_of(list[i]) == key) return i;
    return kNone;
  }

 private:
  // out of line, so that the scan is in line
  template <typename List, typename KeyOf>
  [[gnu::noinline]] size_t find_in_table(const List& list, const void* key, KeyOf& key_of) {
    if (!table_) table_ = std::make_unique<Table>();
    for (; table_->indexed < list.size(); ++table_->indexed)
      table_->positions.try_emplace(key_of(list[table_->indexed]), table_->indexed);
    const auto found = table_->positions.find(key);
    return found == table_->positions.end() ? kNone : found->second;
  }

  struct Table {
    std::unordered_map<const void*, size_t> positions;
    size_t indexed = 0;
  };
  std::unique_ptr<Table> table_;
};

}  // namespace refrain::tape
