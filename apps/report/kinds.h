#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

namespace refrain::report {

/// A kind of memory. The same name, colour and place in the stack in every chart.
struct Kind {
  const char* id;             ///< in documents; also the CSS class, after "k-"
  const char* name;           ///< for readers
  const char* plural;         ///< in breakdown documents; empty if not there
  bool is_patterned = false;  ///< drawn once more over itself with the class "t-" + id
};

/// From the bottom of a stack to its top: what stays through a step, what is kept for backward, what comes and goes.
const std::vector<Kind>& kinds();

/// Index in `kinds()`.
std::optional<size_t> kind_index(const std::string& id);

/// "parameter, optimizer_state, ..."
std::string kind_ids();

/// CSS that gives each kind its colour: the declarations for one theme.
std::string kind_colours(bool is_dark);

/// A swatch and the kind's name, as markup.
std::string kind_label(size_t kind);

}  // namespace refrain::report
