#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace refrain {

/// Number of inserted, deleted, replaced or swapped neighbouring characters between two names, ignoring ASCII case.
/// Cost: O(|a| |b|) time, O(|b|) memory.
/// Source: the "optimal string alignment" form of Damerau, "A technique for computer detection and correction of
/// spelling errors", CACM 7(3), 1964.
int edit_distance(std::string_view a, std::string_view b);

/// The names in `known` that the writer of `name` may have meant, for "did you mean": at most three, nearest first, ties
/// in the order of `known`. Empty if none is within a third of the longer name's length (at least one edit).
std::vector<std::string> nearest(std::string_view name, const std::vector<std::string>& known);

}  // namespace refrain
