#include "memory/page_runs.h"

#include <algorithm>
#include <iterator>

namespace refrain {

void PageRuns::insert(Address begin, Rest rest) {
  runs_.emplace(begin, rest);
  by_size_.emplace(rest.end - begin, begin);
  by_age_.emplace(rest.added, begin);
  bytes_ += rest.end - begin;
}

PageRuns::Runs::iterator PageRuns::erase(Runs::iterator run) {
  const auto [begin, rest] = *run;
  by_size_.erase({rest.end - begin, begin});
  by_age_.erase({rest.added, begin});
  bytes_ -= rest.end - begin;
  return runs_.erase(run);
}

void PageRuns::add(Address begin, Address end) {
  auto next = runs_.lower_bound(begin);
  if (next != runs_.end() && next->first == end) {
    end = next->second.end;
    next = erase(next);
  }
  if (next != runs_.begin()) {
    const auto before = std::prev(next);
    if (before->second.end == begin) {
      begin = before->first;
      erase(before);
    }
  }
  insert(begin, {end, ++additions_});
}

size_t PageRuns::remove(Address begin, Address end) {
  size_t removed = 0;
  auto run = runs_.upper_bound(begin);
  if (run != runs_.begin()) run = std::prev(run);
  while (run != runs_.end() && run->first < end) {
    const auto [first, rest] = *run;
    if (rest.end <= begin) {
      ++run;
      continue;
    }
    run = erase(run);
    if (first < begin) insert(first, {begin, rest.added});
    if (end < rest.end) insert(end, rest);
    removed += std::min(end, rest.end) - std::max(begin, first);
  }
  return removed;
}

std::optional<PageRuns::Run> PageRuns::best_fit(size_t size) const {
  const auto found = by_size_.lower_bound({size, 0});
  if (found == by_size_.end()) return std::nullopt;
  return Run{found->second, found->second + found->first};
}

// The first run that ends behind an address.
PageRuns::Runs::const_iterator PageRuns::first_behind(Address at) const {
  auto run = runs_.upper_bound(at);
  if (run != runs_.begin() && std::prev(run)->second.end > at) --run;
  return run;
}

size_t PageRuns::bytes_in(Address begin, Address end) const {
  size_t bytes = 0;
  for (auto run = first_behind(begin); run != runs_.end() && run->first < end; ++run)
    bytes += std::min(end, run->second.end) - std::max(begin, run->first);
  return bytes;
}

std::optional<PageRuns::Run> PageRuns::best_fit(size_t size, const PageRuns& other) const {
  constexpr int kMostPlaces = 64;
  std::optional<Run> best;
  size_t most = 0;
  int places = 0;
  const auto try_at = [&](Address at) {
    const size_t bytes = other.bytes_in(at, at + size);
    if (best && bytes <= most) return;
    best = Run{at, at + size};
    most = bytes;
  };
  for (auto found = by_size_.lower_bound({size, 0}); found != by_size_.end() && places < kMostPlaces; ++found) {
    const Address begin = found->second, end = begin + found->first;
    try_at(begin);
    ++places;
    // elsewhere the best place begins, or ends, where a run of `other` does
    for (auto run = other.first_behind(begin); run != other.runs_.end() && run->first < end && places < kMostPlaces;
         ++run, ++places) {
      if (run->first > begin && run->first + size <= end) try_at(run->first);
      if (run->second.end <= end && run->second.end > begin + size) try_at(run->second.end - size);
    }
  }
  return best;
}

PageRuns::Run PageRuns::oldest() const {
  const Address begin = by_age_.begin()->second;
  return {begin, runs_.at(begin).end};
}

}  // namespace refrain
