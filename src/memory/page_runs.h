#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>

namespace refrain {

/// Runs of bytes that are not in use, as intervals of addresses. What touches is one run. Finds the smallest that suffices, and the one that has
/// not been added to for longest. Knows nothing of memory: addresses are numbers. Cost: logarithmic in the runs.
class PageRuns {
 public:
  using Address = uintptr_t;
  struct Run {
    Address begin, end;
    size_t size() const { return end - begin; }
  };

  bool empty() const { return runs_.empty(); }
  size_t bytes() const { return bytes_; }

  /// @param begin, end  not overlapping what is there.
  void add(Address begin, Address end);
  /// @return the bytes of the interval that were there, and no longer are.
  size_t remove(Address begin, Address end);

  /// The smallest run of `size` bytes and more, the lowest of these.
  std::optional<Run> best_fit(size_t size) const;
  /// The run whose last addition is the longest ago. Not empty.
  Run oldest() const;

 private:
  struct Rest {
    Address end;
    uint64_t added;
  };
  using Runs = std::map<Address, Rest>;

  void insert(Address begin, Rest rest);
  Runs::iterator erase(Runs::iterator run);

  Runs runs_;
  std::set<std::pair<size_t, Address>> by_size_;
  std::set<std::pair<uint64_t, Address>> by_age_;
  size_t bytes_ = 0;
  uint64_t additions_ = 0;
};

}  // namespace refrain
