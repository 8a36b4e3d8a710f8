#include "apps/report/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>

#include "apps/report/fields.h"
#include "apps/report/markup.h"
#include "apps/report/sections.h"
#include "apps/report/style.h"

namespace refrain::report {
namespace {

using Json = nlohmann::json;

struct DocumentKind {
  const char* id;
  const char* heading;
  std::string (*section)(const Field&, const Place&);
};

constexpr std::array<DocumentKind, 9> kDocumentKinds{{
    {"advice", "Advice", advice_section},
    {"bench", "Strategies", bench_section},
    {"breakdown", "Breakdown by batch", breakdown_section},
    {"depths", "Depth", depths_section},
    {"limits", "Memory limits", limits_section},
    {"max_batch", "Largest batch", max_batch_section},
    {"pareto", "Added time and peak", pareto_section},
    {"segments", "Segments", segments_section},
    {"timeline", "Memory over time", timeline_section},
}};

/// What a document says of itself: `kind "bench" version 2`.
std::string found_kind(const Field& document) {
  const auto kind = document.find("kind"), version = document.find("version");
  if (!kind) return "no `kind`";
  const std::string says = "kind " + kind->shown();
  return version ? says + " version " + version->shown() : says + " without a version";
}

const DocumentKind& kind_of(const Field& document) {
  const auto id = document.find("kind"), version = document.find("version");
  const auto found = std::find_if(kDocumentKinds.begin(), kDocumentKinds.end(),
                                  [&](const auto& known) { return id && id->json() == known.id; });
  if (found == kDocumentKinds.end()) {
    std::string ids;
    for (const auto& known : kDocumentKinds) ids += (ids.empty() ? "" : ", ") + std::string(known.id);
    document.refuse(found_kind(document), "one to draw, version 1 of kind " + ids);
  }
  if (!version || !version->json().is_number_integer() || version->json() != 1)
    document.refuse(found_kind(document), fmt::format("kind \"{}\" version 1", found->id));
  return *found;
}

std::string value_markup(const Json& value) {
  // a seed may be over the largest int64
  if (value.is_number_integer()) return Number{.shown = value.dump(), .exact = value.dump()}.html();
  if (value.is_number()) return plain(value.get<double>()).html();
  if (value.is_string()) return escape(value.get<std::string>());
  return escape(value.dump(-1, ' ', false, Json::error_handler_t::replace));
}

/// "batch 2 · seq 128"
std::string facts(const Field& object) {
  std::string out;
  for (const auto& [name, value] : object.members()) {
    out += fmt::format("{}<span>{} {}</span>", out.empty() ? "" : " · ", escape(name), value_markup(value.json()));
  }
  return out;
}

/// What a section is about, beside its kind: the strategy of a timeline.
std::string heading(const Field& document, const DocumentKind& kind) {
  std::string text = fmt::format("{}: {}", kind.heading, escape(document["model"].text()));
  if (kind.id == std::string("timeline")) text += ", " + escape(document["strategy"].text());
  return text;
}

std::vector<Field> fields(const std::vector<Json>& documents, const std::vector<std::string>& names) {
  std::vector<Field> list;
  for (size_t i = 0; i < documents.size(); ++i) {
    list.emplace_back(documents[i], i < names.size() ? "'" + names[i] + "'" : fmt::format("document {}", i + 1));
  }
  return list;
}

std::string title(const std::vector<Field>& documents) {
  std::vector<std::string> models;
  for (const Field& document : documents) {
    const std::string model = document["model"].text();
    if (std::find(models.begin(), models.end(), model) == models.end()) models.push_back(model);
  }
  std::string text;
  for (const auto& model : models) text += (text.empty() ? "" : ", ") + model;
  return text.empty() ? "Memory and time" : text + ": memory and time";
}

/// What the axes of all timelines of a model reach.
std::map<std::string, int64_t> timeline_scales(const std::vector<Field>& documents) {
  std::map<std::string, int64_t> scales;
  for (const Field& document : documents) {
    if (kind_of(document).id != std::string("timeline")) continue;
    int64_t& scale = scales[document["model"].text()];
    scale = std::max(scale, timeline_reach(document));
  }
  return scales;
}

std::string contents(const std::vector<Field>& documents) {
  if (documents.size() < 2) return "";
  std::string out = "<nav aria-label=\"Contents\"><ol>\n";
  for (size_t i = 0; i < documents.size(); ++i) {
    out += fmt::format("<li><a href=\"#d{}\">{}</a></li>\n", i + 1, heading(documents[i], kind_of(documents[i])));
  }
  return out + "</ol></nav>\n";
}

std::string section(const Field& document, size_t number, const std::map<std::string, int64_t>& scales,
                    const Json& common_machine) {
  const DocumentKind& kind = kind_of(document);
  const auto scale = scales.find(document["model"].text());
  const Place place{.id = fmt::format("d{}", number), .scale_bytes = scale == scales.end() ? 0 : scale->second};
  std::string out = fmt::format("<section id=\"{}\">\n<h2>{}</h2>\n<p class=\"about\">{}</p>\n", place.id,
                                heading(document, kind), facts(document["config"]));
  const Field machine = document["machine"];
  if (machine.json() != common_machine) out += fmt::format("<p class=\"about\">Measured on: {}</p>\n", facts(machine));
  return out + kind.section(document, place) + "</section>\n";
}

}  // namespace

std::string html(const std::vector<Json>& documents, const std::vector<std::string>& names) {
  const auto all = fields(documents, names);
  const auto scales = timeline_scales(all);
  const std::string heading = escape(title(all));
  std::string body = fmt::format("<h1>{}</h1>\n", heading);
  if (all.empty()) body += "<p class=\"none\">No documents were given.</p>\n";
  const Json machine = all.empty() ? Json() : all.front()["machine"].json();
  if (!all.empty()) body += fmt::format("<p class=\"about\">Measured on: {}</p>\n", facts(all.front()["machine"]));
  body += contents(all);
  for (size_t i = 0; i < all.size(); ++i) body += section(all[i], i + 1, scales, machine);
  body +=
      "<footer><p class=\"about\">Numbers are rounded; the exact ones are beneath them or in their tooltips. "
      "A KiB, MiB or GiB is a power of two of bytes. Times are medians unless they say otherwise.</p></footer>\n";
  return fmt::format(
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<meta name=\"generator\" content=\"refrain\">\n<title>{}</title>\n<style>\n{}</style>\n</head>\n<body>\n{}<main>\n{}</main>\n<script>{}</script>\n</body>\n</html>\n",
      heading, style_sheet(), patterns(), body, script());
}

std::string bytes_cell(int64_t bytes, const ByteUnit& unit) {
  return fmt::format("{} <small>{}</small>", number_of(bytes, unit).html(), exact_bytes(bytes).html());
}

std::optional<double> read_spread(const Field& row) {
  const auto spread = row.find("step_ms_spread");
  return spread ? std::optional(spread->duration()) : std::nullopt;
}

std::string median_and_spread(double median_ms, const std::optional<double>& spread_ms) {
  std::string text = milliseconds(median_ms).html();
  if (spread_ms) text += " <small>± " + milliseconds(*spread_ms).html() + "</small>";
  return text;
}

std::string adds_to_the_step(double added, const Number& shown) {
  return added > 0 ? fmt::format("adds {} to the step", shown.html())
                   : fmt::format("adds no time to the step ({})", shown.html());
}

std::string with_unit(int64_t bytes, const ByteUnit& unit) {
  return fmt::format("{}&nbsp;{}", number_of(bytes, unit).html(), unit.name);
}

std::string tagged(const char* tag, const std::string& text) {
  return fmt::format("<{0}>{1}</{0}>", tag, escape(text));
}

}  // namespace refrain::report
