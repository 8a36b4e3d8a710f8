#include "tape/storage_map.h"

namespace refrain::tape {

void StorageMap::erase(const c10::StorageImpl* storage, const Value* value) {
  size_t hole = hash_of(storage) & mask_;
  while (values_[hole] != value) hole = (hole + 1) & mask_;
  // entries behind that may be here move up
  for (size_t at = hole;;) {
    at = (at + 1) & mask_;
    if (hashes_[at] == 0) break;
    const size_t home = hashes_[at] & mask_;
    if (((at - home) & mask_) < ((at - hole) & mask_)) continue;
    hashes_[hole] = hashes_[at];
    values_[hole] = values_[at];
    hole = at;
  }
  hashes_[hole] = 0;
  values_[hole] = nullptr;
  --size_;
}

}  // namespace refrain::tape
