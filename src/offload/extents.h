#pragma once

#include <cstdint>
#include <map>
#include <optional>

namespace refrain::offload {

/// Free parts of a file. Sizes are multiples of 4096 bytes; adjacent parts are joined.
class Extents {
 public:
  struct Extent {
    int64_t offset = 0, size = 0;
  };
  static int64_t round_up(int64_t nbytes) { return (nbytes + 4095) / 4096 * 4096; }

  /// Takes the first free part that is large enough, from the start of the file on. @param size  of `round_up`
  std::optional<Extent> take(int64_t size);
  void give_back(const Extent& extent);
  int64_t free_bytes() const { return free_bytes_; }
  /// Size of the free part that ends at `end`; 0 for none.
  int64_t free_before(int64_t end) const;

 private:
  std::map<int64_t, int64_t> free_;  ///< offset to size
  int64_t free_bytes_ = 0;
};

}  // namespace refrain::offload
