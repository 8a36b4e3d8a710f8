#include "apps/refrain/table.h"

#include <fmt/format.h>

#include <algorithm>

namespace refrain::cli {

std::string Table::str() const {
  std::vector<size_t> widths(rows_.front().size(), 0);
  for (const auto& row : rows_) {
    for (size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], row[c].size());
  }
  std::string text;
  for (const auto& row : rows_) {
    for (size_t c = 0; c < row.size(); ++c) {
      text += c == 0 ? fmt::format("{:<{}}", row[c], widths[c]) : fmt::format("  {:>{}}", row[c], widths[c]);
    }
    text += '\n';
    if (&row != &rows_.front()) continue;
    for (size_t c = 0; c < widths.size(); ++c) text += std::string(c == 0 ? 0 : 2, ' ') + std::string(widths[c], '-');
    text += '\n';
  }
  return text;
}

}  // namespace refrain::cli
