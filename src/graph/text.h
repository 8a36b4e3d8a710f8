#pragma once

#include <map>
#include <string>
#include <string_view>

#include "graph/schedule.h"

/// Graphs and schedules as a few lines of text, for tests and for reading by eye.
///
///     model "two layers"
///     source x bytes=64                      # birth=0, death=end
///     a = aten::relu(x) ns=5 bytes=64 ws=16
///     b = aten::mul_(a!, x) scope=block.0    # overwrites a, which it reads
///     c, d = split(b) bytes=32,32 death=-,end keep=d
///     e = zero_(!c) random once
///     done(e) backward outside=8 gap=9
///     end outside=8 gap=8
///
/// A line is an operator, `source`, `model` or `end`; `#` begins a comment. Values are numbered in the order in which
/// the lines name them.
/// - `a!` is read and overwritten, `!a` only overwritten: the first such argument by the first output, and so on, or
///   `a!>d` by output d. A source says `over=a`. What overwrites has the bytes of what it overwrites.
/// - Lists go by output: `bytes` of those that overwrite nothing, `death` of all, `-` being the default. `keep`:
///   outputs that are not evictable.
/// - Defaults: bytes=1, ns=1, ws=0, outside=0, gap=outside; birth is the line's place. A source dies at the end, other
///   values after their last use, and what is overwritten when that happens.
/// - Flags: `once` cannot be recomputed, `random`, `backward`.
/// - Names with other characters than letters, digits and `_.:/-` stand in quotes, with `\"`, `\\` and `\x0a`.
namespace refrain::graph {

struct ParsedGraph {
  Graph graph;
  std::map<std::string, ValueId, std::less<>> ids;

  ValueId operator[](std::string_view name) const { return ids.at(std::string(name)); }
};

/// @throws FormatError with line and column, what was found and what was expected; also if the graph has a defect.
ParsedGraph parse(std::string_view text);

/// Name that `to_text` gives a value.
std::string value_text(ValueId id);

/// Writes `graph`, as `parse` reads it; values are called v0, v1, ... `graph` must have no defect.
std::string to_text(const Graph& graph);

/// Reads a schedule such as `3: drop a, recompute b, recompute_in_place c`, a line a place, and `end: ...`. Operators
/// are named by one of their outputs.
/// @throws FormatError as `parse`. The schedule need not be able to run.
Schedule parse_schedule(std::string_view text, const ParsedGraph& graph);

/// Writes `schedule`, as `parse_schedule` reads it, with the names of `to_text`; operators without outputs as `#7`.
std::string to_text(const Graph& graph, const Schedule& schedule);

}  // namespace refrain::graph
