#include "apps/refrain/html_file.h"

#include <fmt/format.h>

#include "base/atomic_file.h"
#include "report/report.h"

namespace refrain::cli {

void write_html(const std::string& path, const std::vector<Json>& documents, const std::vector<std::string>& names) {
  if (path.empty()) return;
  const std::string page = report::html({documents.begin(), documents.end()}, names);
  if (path == "-") {
    fmt::print("{}", page);
  } else {
    write_file_atomically(path, page);
  }
}

}  // namespace refrain::cli
