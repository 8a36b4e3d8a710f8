#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

/// Draws the JSON documents that the measuring commands write (docs/design/report.md). No LibTorch, no file, no network.
namespace refrain::report {

/// One self-contained HTML page with a section for each document, in the order given.
///
/// Readable without scripts, on paper, in light and dark, from 360 px on. Shows nothing that is not in the documents: every
/// number is a number of a document, rounded or in another unit, or the ratio of two; the exact one is in its tooltip, its
/// table, and the `value` attribute.
/// @param documents  of any kinds; none gives a page that says so.
/// @param names      what to call the documents in errors, such as their files; missing ones are counted from 1.
/// @throws FormatError  if a document is not of a known kind and version 1, or lacks what its kind must have: says which
///                      document, which member, what was found and what was expected.
/// Cost: linear in the documents; the page is at most a few hundred KB a timeline. Deterministic. Threads: any.
std::string html(const std::vector<nlohmann::json>& documents, const std::vector<std::string>& names = {});

}  // namespace refrain::report
