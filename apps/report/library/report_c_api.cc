#include "apps/report/library/report_c_api.h"

#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "apps/report/report.h"

namespace {

char* owned(const std::string& text) {
  auto* const copy = static_cast<char*>(std::malloc(text.size() + 1));
  if (copy) std::memcpy(copy, text.c_str(), text.size() + 1);
  return copy;
}

}  // namespace

char* refrain_report_html(const char* const* documents, size_t count, char** error) {
  *error = nullptr;
  try {
    std::vector<nlohmann::json> parsed;
    for (size_t i = 0; i < count; ++i) parsed.push_back(nlohmann::json::parse(documents[i]));
    return owned(refrain::report::html(parsed));
  } catch (const std::exception& found) {
    *error = owned(found.what());
  } catch (...) {
    *error = owned("[refrain::report] an exception that is no std::exception");
  }
  return nullptr;
}

void refrain_report_free(char* text) { std::free(text); }
