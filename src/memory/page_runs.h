#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>

namespace refrain {

/// Runs of unused bytes, as intervals of addresses; adjacent ones are joined. Finds the smallest that suffices, and the
/// one whose last addition is the longest ago. Never accesses memory: addresses are numbers. Cost: logarithmic in the
/// runs.
class PageRuns {
 public:
  using Address = uintptr_t;
  struct Run {
    Address begin, end;
    size_t size() const { return end - begin; }
  };

  bool empty() const { return runs_.empty(); }
  size_t bytes() const { return bytes_; }

  /// Adds an interval. @param begin, end  not overlapping the present runs.
  void add(Address begin, Address end);
  /// Removes an interval. @return how many of its bytes were in runs.
  size_t remove(Address begin, Address end);

  /// Finds the smallest run of `size` bytes and more, the lowest of these.
  std::optional<Run> best_fit(size_t size) const;
  /// Finds where `size` bytes of these runs have the most bytes in runs of `other`, of some sixty places, the smallest
  /// runs first.
  std::optional<Run> best_fit(size_t size, const PageRuns& other) const;
  /// Finds the run whose last addition is the longest ago. There must be one.
  Run oldest() const;

 private:
  struct Rest {
    Address end;
    uint64_t added;
  };
  using Runs = std::map<Address, Rest>;

  void insert(Address begin, Rest rest);
  Runs::const_iterator first_behind(Address at) const;
  size_t bytes_in(Address begin, Address end) const;
  Runs::iterator erase(Runs::iterator run);

  Runs runs_;
  std::set<std::pair<size_t, Address>> by_size_;
  std::set<std::pair<uint64_t, Address>> by_age_;
  size_t bytes_ = 0;
  uint64_t additions_ = 0;
};

}  // namespace refrain
