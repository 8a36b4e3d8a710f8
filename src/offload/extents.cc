#include "offload/extents.h"

#include <algorithm>
#include <iterator>

namespace refrain::offload {

std::optional<Extents::Extent> Extents::take(int64_t size) {
  const auto found = std::find_if(free_.begin(), free_.end(), [&](const auto& part) { return part.second >= size; });
  if (found == free_.end()) return std::nullopt;
  const auto [offset, room] = *found;
  free_.erase(found);
  if (room > size) free_.emplace(offset + size, room - size);
  free_bytes_ -= size;
  return Extent{offset, size};
}

void Extents::give_back(const Extent& extent) {
  if (extent.size == 0) return;
  free_bytes_ += extent.size;
  auto [at, is_new] = free_.emplace(extent.offset, extent.size);
  if (const auto next = std::next(at); next != free_.end() && next->first == at->first + at->second) {
    at->second += next->second;
    free_.erase(next);
  }
  if (at == free_.begin()) return;
  const auto before = std::prev(at);
  if (before->first + before->second != at->first) return;
  before->second += at->second;
  free_.erase(at);
}

int64_t Extents::free_before(int64_t end) const {
  if (free_.empty()) return 0;
  const auto [offset, size] = *free_.rbegin();
  return offset + size == end ? size : 0;
}

}  // namespace refrain::offload
