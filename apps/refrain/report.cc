#include "apps/refrain/commands.h"
#include "apps/refrain/html_file.h"

namespace refrain::cli {

int run_report(const ReportArgs& args) {
  check_can_write(args.html, "--html");
  std::vector<Json> documents;
  for (const auto& file : args.files) documents.push_back(read_json(file));
  write_html(args.html, documents, args.files);
  return kOk;
}

}  // namespace refrain::cli
