#include "apps/refrain/json_file.h"

#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "base/atomic_file.h"
#include "graph/json.h"
#include "refrain/error.h"

namespace refrain::cli {
namespace fs = std::filesystem;

namespace {

constexpr int64_t kVersion = 1;  ///< of the tool's documents, all kinds

}  // namespace

void check_can_write(const std::string& path, const std::string& option) {
  if (path.empty() || path == "-") return;
  std::error_code ignored;
  if (fs::exists(path, ignored) && !fs::is_regular_file(path, ignored)) {
    throw InvalidArgument(
        fmt::format("{} '{}': found something that is not a regular file; give a file name", option, path));
  }
  const fs::path parent = fs::path(path).has_parent_path() ? fs::path(path).parent_path() : fs::path(".");
  if (!fs::is_directory(parent, ignored)) {
    throw InvalidArgument(
        fmt::format("{} '{}': expected an existing folder '{}'; create it", option, path, parent.string()));
  }
  if (access(parent.c_str(), W_OK) != 0) {
    throw InvalidArgument(
        fmt::format("{} '{}': the folder '{}' cannot be written to; choose another", option, path, parent.string()));
  }
}

void write_json(const std::string& path, const Json& json) {
  if (path.empty()) return;
  // A name in a message may hold bytes that are not UTF-8: replaced, not an exception.
  const std::string text = json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  if (path == "-") {
    fmt::print("{}", text);
  } else {
    write_file_atomically(path, text);
  }
}

std::string read_file(const std::string& path, const std::string& expected) {
  std::error_code ignored;
  if (!fs::exists(path, ignored)) {
    throw FormatError(fmt::format("'{}': no such file; expected {}; check the path", path, expected));
  }
  if (fs::is_directory(path, ignored)) {
    throw FormatError(fmt::format("'{}': found a folder; expected {}; name a file in it", path, expected));
  }
  std::ifstream file(path, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(file), {}};
  if (!file.is_open() || file.bad()) {
    throw FormatError(fmt::format("'{}': cannot be read; expected {}; check its permissions", path, expected));
  }
  return bytes;
}

Json read_json(const std::string& path) {
  const std::string expected = "a report that --json wrote";
  const std::string text = read_file(path, expected);
  if (text.empty())
    throw FormatError(fmt::format("'{}': found an empty file; expected {}; write it again", path, expected));
  try {
    return Json::parse(text);
  } catch (const Json::parse_error& error) {
    throw FormatError(
        fmt::format("'{}': found invalid JSON at byte {}; expected {}; write it again", path, error.byte, expected));
  }
}

Json new_document(const std::string& kind) { return {{"kind", kind}, {"version", kVersion}}; }

Json read_document(const std::string& path, const std::string& kind, const std::string& expected) {
  Json json = read_json(path);
  const nlohmann::json document(json);
  if (!graph::is_kind(document, kind, kVersion)) {
    throw FormatError(fmt::format("'{}': found {}; expected kind \"{}\" version {}, {}; write it again", path,
                                  graph::found_kind(document), kind, kVersion, expected));
  }
  return json;
}

}  // namespace refrain::cli
