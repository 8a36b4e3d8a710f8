#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "apps/report/fields.h"
#include "apps/report/numbers.h"

namespace refrain::report {

/// Where a document's section stands on the page.
struct Place {
  std::string id;           ///< prefix of all ids within it
  int64_t scale_bytes = 0;  ///< what the axes of all timelines of the same model reach
};

/// What a section says under its heading: first a sentence with the finding, then charts and tables. As markup.
/// Each throws `FormatError` if the document is not as its kind must be.
std::string bench_section(const Field& document, const Place& place);
std::string timeline_section(const Field& document, const Place& place);
std::string breakdown_section(const Field& document, const Place& place);
std::string depths_section(const Field& document, const Place& place);
std::string segments_section(const Field& document, const Place& place);
std::string limits_section(const Field& document, const Place& place);
std::string pareto_section(const Field& document, const Place& place);
std::string max_batch_section(const Field& document, const Place& place);
std::string advice_section(const Field& document, const Place& place);

/// What the axis of a timeline reaches: its peak, and what was resident over what was before any tensor.
int64_t timeline_reach(const Field& document);

/// Bytes in a table: in the table's unit, with the exact number beneath.
std::string bytes_cell(int64_t bytes, const ByteUnit& unit);

/// `step_ms_spread` of a measured row, where it has one.
std::optional<double> read_spread(const Field& row);

/// "812.4 ± 3.1", in ms.
std::string median_and_spread(double median_ms, const std::optional<double>& spread_ms);

/// "adds 27 % to the step", or that it adds nothing. @param added  its sign; `shown` is how much.
std::string adds_to_the_step(double added, const Number& shown);

/// A number with its unit, for sentences.
std::string with_unit(int64_t bytes, const ByteUnit& unit);

/// `text` as markup within a tag. @param tag  b, code, ...
std::string tagged(const char* tag, const std::string& text);

}  // namespace refrain::report
