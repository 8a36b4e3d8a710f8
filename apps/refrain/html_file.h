#pragma once

#include <string>
#include <vector>

#include "apps/refrain/json_file.h"

namespace refrain::cli {

/// Draws documents as `report::html` does, to `path` at once or not at all; "-" is standard output, empty does nothing.
/// @param names  of the documents, for errors.
void write_html(const std::string& path, const std::vector<Json>& documents,
                const std::vector<std::string>& names = {});

/// Prints `text` unless standard output gets the document or the page, then writes these. @param json, html  as given.
void publish(const Json& document, const std::string& text, const std::string& json, const std::string& html);

}  // namespace refrain::cli
