#include "apps/report/kinds.h"

#include <fmt/format.h>

#include <algorithm>

namespace refrain::report {
namespace {

struct Colour {
  const char* light;
  const char* dark;
};

// blues stay, orange is kept for backward, yellow is recomputed, greens are temporary
const std::vector<Colour> kKindColours{
    {"#29527a", "#4b7fb3"}, {"#5a86b0", "#7ba6d0"}, {"#8fb4d3", "#a9c9e4"}, {"#73808c", "#6c7883"},
    {"#a7b1ba", "#99a4ae"}, {"#cf5b2a", "#dd6a38"}, {"#e9b13f", "#e3b04b"}, {"#4f8a5b", "#58996a"},
    {"#9bbf8f", "#93bb8a"}, {"#8d8d88", "#85857f"},
};

}  // namespace

const std::vector<Kind>& kinds() {
  static const std::vector<Kind> list{
      {"parameter", "parameters", "parameters"},
      {"optimizer_state", "optimizer state", "optimizer_states"},
      {"gradient", "gradients", "gradients"},
      {"buffer", "buffers", ""},
      {"input", "input", ""},
      {"activation_kept", "activations kept", "activations"},
      {"recomputed", "recomputed", "", true},
      {"temporary", "temporaries", "temporaries"},
      {"workspace", "workspace", "", true},
      {"other", "other", ""},
  };
  return list;
}

std::optional<size_t> kind_index(const std::string& id) {
  const auto& all = kinds();
  const auto found = std::find_if(all.begin(), all.end(), [&](const Kind& kind) { return kind.id == id; });
  if (found == all.end()) return std::nullopt;
  return static_cast<size_t>(found - all.begin());
}

std::string kind_ids() {
  std::string list;
  for (const Kind& kind : kinds()) list += (list.empty() ? "" : ", ") + std::string(kind.id);
  return list;
}

std::string kind_colours(bool is_dark) {
  std::string css;
  for (size_t i = 0; i < kinds().size(); ++i) {
    css += fmt::format("--k-{}:{};", kinds()[i].id, is_dark ? kKindColours[i].dark : kKindColours[i].light);
  }
  return css;
}

std::string kind_label(size_t kind) {
  const Kind& shown = kinds()[kind];
  const auto square = [&](char css) {
    return fmt::format("<rect width=\"12\" height=\"12\" class=\"{}-{}\"/>", css, shown.id);
  };
  return fmt::format(
      "<span class=\"kind\"><svg class=\"swatch\" viewBox=\"0 0 12 12\" width=\"12\" height=\"12\" aria-hidden=\"true\">{}{}</svg>{}</span>",
      square('k'), shown.is_patterned ? square('t') : "", shown.name);
}

}  // namespace refrain::report
