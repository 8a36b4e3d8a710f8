#include "base/suggest.h"

#include <algorithm>
#include <cstddef>
#include <utility>

namespace refrain {
namespace {

constexpr size_t kMostSuggestions = 3;

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

}  // namespace

int edit_distance(std::string_view a, std::string_view b) {
  std::vector<int> before(b.size() + 1);  // row i - 2
  std::vector<int> above(b.size() + 1);   // row i - 1
  std::vector<int> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = static_cast<int>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    std::swap(before, above);
    std::swap(above, row);
    row[0] = static_cast<int>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const bool same = lower(a[i - 1]) == lower(b[j - 1]);
      row[j] = std::min({above[j] + 1, row[j - 1] + 1, above[j - 1] + (same ? 0 : 1)});
      const bool swapped = i > 1 && j > 1 && lower(a[i - 1]) == lower(b[j - 2]) && lower(a[i - 2]) == lower(b[j - 1]);
      if (swapped) row[j] = std::min(row[j], before[j - 2] + 1);
    }
  }
  return row[b.size()];
}

std::vector<std::string> nearest(std::string_view name, const std::vector<std::string>& known) {
  std::vector<std::pair<int, const std::string*>> close;
  for (const std::string& candidate : known) {
    const size_t longer = std::max(name.size(), candidate.size());
    const size_t allowed = std::max<size_t>(1, longer / 3);
    if (longer - std::min(name.size(), candidate.size()) > allowed) continue;
    const int distance = edit_distance(name, candidate);
    // all characters replaced is no resemblance, however short the names
    if (static_cast<size_t>(distance) <= allowed && static_cast<size_t>(distance) < longer)
      close.emplace_back(distance, &candidate);
  }
  std::stable_sort(close.begin(), close.end(), [](const auto& x, const auto& y) { return x.first < y.first; });
  std::vector<std::string> names;
  for (size_t i = 0; i < std::min(close.size(), kMostSuggestions); ++i) names.push_back(*close[i].second);
  return names;
}

}  // namespace refrain
