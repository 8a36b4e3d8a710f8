#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace refrain::cli {

using Json = nlohmann::ordered_json;

/// Throws `InvalidArgument` now if `path` could not be written later: it is a folder, or in none that is there and
/// writable. Empty and "-" pass. @param option  named in the message.
void check_can_write(const std::string& path, const std::string& option);

/// To `path` at once or not at all; "-" is standard output, empty does nothing.
void write_json(const std::string& path, const Json& json);

/// @throws FormatError naming the file and the position if it is missing, empty or not JSON.
Json read_json(const std::string& path);

/// {"kind": kind, "version": 1}: how every document that the tool writes begins.
Json new_document(const std::string& kind);

/// As `read_json`. @throws FormatError also if it is not of this kind and version 1: names what it is.
/// @param expected  what it should be, as `a report of 'refrain train --json'`.
Json read_document(const std::string& path, const std::string& kind, const std::string& expected);

/// All bytes of a file. @throws FormatError if it cannot be read or is a folder.
std::string read_file(const std::string& path, const std::string& expected);

}  // namespace refrain::cli
