#pragma once

#include <string>

namespace refrain::report {

/// The page's style sheet: light and dark, screen and paper, wide and narrow.
std::string style_sheet();

/// What the page does not need to be read: the level under the pointer; closed parts open on paper.
std::string script();

/// Patterns that charts fill with, as a drawing of no size.
std::string patterns();

}  // namespace refrain::report
