#include "apps/refrain/html_file.h"

#include <fmt/format.h>

#include "apps/report/report.h"
#include "base/atomic_file.h"

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

void publish(const Json& document, const std::string& text, const std::string& json, const std::string& html) {
  if (json != "-" && html != "-") fmt::print("{}", text);
  write_json(json, document);
  write_html(html, {document});
}

}  // namespace refrain::cli
