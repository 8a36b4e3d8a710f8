#include <fstream>
#include <iostream>

#include "apps/report/report.h"
#include "refrain/error.h"

/// `render FILE...`: the page of these documents, to standard output. For the tests that look at whole pages.
int main(int argc, char** argv) {
  std::vector<nlohmann::json> documents;
  const std::vector<std::string> names(argv + 1, argv + argc);
  try {
    for (const auto& name : names) documents.push_back(nlohmann::json::parse(std::ifstream(name)));
    std::cout << refrain::report::html(documents, names);
    return 0;
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 2;
  }
}
