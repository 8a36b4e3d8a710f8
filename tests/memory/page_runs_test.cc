#include "memory/page_runs.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace refrain {
namespace {

/// A byte each, with the number of the addition that its run last had; 0: not there.
class BruteForce {
 public:
  explicit BruteForce(size_t size) : there_(size, 0) {}

  void add(size_t begin, size_t end) {
    std::fill(there_.begin() + static_cast<long>(begin), there_.begin() + static_cast<long>(end), ++additions_);
    while (begin > 0 && there_[begin - 1] != 0) there_[--begin] = additions_;
    while (end < there_.size() && there_[end] != 0) there_[end++] = additions_;
  }
  size_t remove(size_t begin, size_t end) {
    size_t removed = 0;
    for (size_t i = begin; i < end; ++i) removed += std::exchange(there_[i], 0) != 0;
    return removed;
  }
  bool has_any(size_t begin, size_t end) const {
    return std::any_of(there_.begin() + static_cast<long>(begin), there_.begin() + static_cast<long>(end),
                       [](uint64_t n) { return n != 0; });
  }
  bool has_all(size_t begin, size_t end) const {
    return std::all_of(there_.begin() + static_cast<long>(begin), there_.begin() + static_cast<long>(end),
                       [](uint64_t n) { return n != 0; });
  }
  size_t bytes_in(size_t begin, size_t end) const {
    return static_cast<size_t>(std::count_if(there_.begin() + static_cast<long>(begin),
                                             there_.begin() + static_cast<long>(end),
                                             [](uint64_t n) { return n != 0; }));
  }
  std::vector<PageRuns::Run> runs() const {
    std::vector<PageRuns::Run> runs;
    for (size_t i = 0; i < there_.size(); ++i) {
      if (there_[i] == 0) continue;
      if (i > 0 && there_[i - 1] != 0)
        ++runs.back().end;
      else
        runs.push_back({i, i + 1});
    }
    return runs;
  }
  uint64_t age(size_t at) const { return there_[at]; }

 private:
  std::vector<uint64_t> there_;
  uint64_t additions_ = 0;
};

TEST(PageRuns, AreThoseOfBruteForce) {
  constexpr size_t kSize = 120;
  for (unsigned seed = 0; seed < 200; ++seed) {
    std::mt19937 random(seed);
    PageRuns runs;
    BruteForce expected(kSize);
    for (int step = 0; step < 300; ++step) {
      const size_t begin = random() % kSize, end = begin + 1 + random() % std::min<size_t>(kSize - begin, 12);
      if (random() % 2 == 0) {
        ASSERT_EQ(runs.remove(begin, end), expected.remove(begin, end));
      } else if (!expected.has_any(begin, end)) {
        runs.add(begin, end);
        expected.add(begin, end);
      }
      const auto all = expected.runs();
      size_t bytes = 0;
      for (const auto& run : all) bytes += run.size();
      ASSERT_EQ(runs.bytes(), bytes);
      ASSERT_EQ(runs.empty(), all.empty());
      for (size_t size = 1; size <= 20; ++size) {
        const PageRuns::Run* best = nullptr;
        for (const auto& run : all)
          if (run.size() >= size && (!best || run.size() < best->size())) best = &run;
        const auto found = runs.best_fit(size);
        ASSERT_EQ(found.has_value(), best != nullptr);
        if (best) {
          ASSERT_EQ(std::pair(found->begin, found->end), std::pair(best->begin, best->end));
        }
      }
      if (all.empty()) continue;
      // pieces of a run that was cut are as old as it was: the lowest of them
      const auto oldest = *std::min_element(all.begin(), all.end(), [&](const auto& a, const auto& b) {
        return expected.age(a.begin) < expected.age(b.begin);
      });
      ASSERT_EQ(runs.oldest().begin, oldest.begin);
    }
  }
}

TEST(PageRuns, APlaceHasTheMostOfOthers) {
  constexpr size_t kSize = 120;
  size_t found_some = 0;
  for (unsigned seed = 0; seed < 200; ++seed) {
    std::mt19937 random(seed);
    PageRuns runs, others;
    BruteForce expected(kSize), expected_others(kSize);
    for (int step = 0; step < 300; ++step) {
      const size_t begin = random() % kSize, end = begin + 1 + random() % std::min<size_t>(kSize - begin, 12);
      if (random() % 3 == 0) {
        runs.remove(begin, end);
        expected.remove(begin, end);
        others.remove(begin, end);
        expected_others.remove(begin, end);
      } else if (!expected.has_any(begin, end)) {
        runs.add(begin, end);
        expected.add(begin, end);
      } else if (expected.has_all(begin, end) && !expected_others.has_any(begin, end)) {
        others.add(begin, end);
        expected_others.add(begin, end);
      }
      for (size_t size = 1; size <= 20; ++size) {
        bool fits = false;
        size_t most = 0;
        for (size_t at = 0; at + size <= kSize; ++at) {
          if (!expected.has_all(at, at + size)) continue;
          fits = true;
          most = std::max(most, expected_others.bytes_in(at, at + size));
        }
        const auto found = runs.best_fit(size, others);
        ASSERT_EQ(found.has_value(), fits);
        if (!found) continue;
        ASSERT_EQ(found->size(), size);
        ASSERT_TRUE(expected.has_all(found->begin, found->end));
        ASSERT_EQ(expected_others.bytes_in(found->begin, found->end), most) << "seed " << seed << ", size " << size;
        found_some += most > 0;
      }
    }
  }
  EXPECT_GT(found_some, 100000u);
}

}  // namespace
}  // namespace refrain
