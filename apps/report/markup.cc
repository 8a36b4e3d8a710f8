#include "apps/report/markup.h"

#include <fmt/format.h>

#include <algorithm>

namespace refrain::report {
namespace {

constexpr size_t kMostOnAPhone = 3;  // columns
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

/// Bytes of the well-formed UTF-8 character at the start of `text`, 0 if it is none.
size_t character_length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  const size_t length = first < 0x80   ? 1
                        : first < 0xC2 ? 0
                        : first < 0xE0 ? 2
                        : first < 0xF0 ? 3
                        : first < 0xF5 ? 4
                                       : 0;
  if (length == 0 || length > text.size()) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  if (first == 0xE0 && byte(1) < 0xA0) return 0;                                         // overlong
  if (first == 0xED && byte(1) > 0x9F) return 0;                                         // surrogate
  if (first == 0xEF && byte(1) == 0xBF && byte(2) >= 0xBE) return 0;                     // not a character
  if ((first == 0xF0 && byte(1) < 0x90) || (first == 0xF4 && byte(1) > 0x8F)) return 0;  // overlong, out of range
  return length;
}

double character_width(char c) {
  if (std::string_view("iljtfrI.,:;'|!()[] ").find(c) != std::string_view::npos) return 0.36;
  if (std::string_view("mwMW@%").find(c) != std::string_view::npos) return 0.88;
  if (c >= 'A' && c <= 'Z') return 0.71;
  return 0.58;
}

}  // namespace

std::string escape(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const size_t length = character_length(text);
    const char c = text.front();
    const bool is_control = static_cast<unsigned char>(c) < ' ' && c != '\n' && c != '\t';
    if (length == 0 || is_control || c == 127) {
      out += kReplacement;
    } else if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else if (c == '"') {
      out += "&quot;";
    } else if (c == '\'') {
      out += "&#39;";
    } else {
      out += text.substr(0, length);
    }
    text.remove_prefix(std::max<size_t>(length, 1));
  }
  return out;
}

double text_width(std::string_view text, double size) {
  double width = 0;
  while (!text.empty()) {
    const size_t length = std::max<size_t>(character_length(text), 1);
    width += length == 1 ? character_width(text.front()) : length == 2 ? 0.6 : 1.0;
    text.remove_prefix(length);
  }
  return width * size;
}

std::string fit(std::string_view text, double width, double size) {
  if (text_width(text, size) <= width) return std::string(text);
  const double room = width - 0.9 * size;
  size_t kept = 0;
  while (kept < text.size()) {
    const size_t next = kept + std::max<size_t>(character_length(text.substr(kept)), 1);
    if (text_width(text.substr(0, next), size) > room) break;
    kept = next;
  }
  return std::string(text.substr(0, kept)) + "…";
}

HtmlTable& HtmlTable::text_columns(std::vector<size_t> columns) {
  text_columns_ = std::move(columns);
  text_columns_.push_back(0);
  return *this;
}

void HtmlTable::add(std::vector<std::string> cells, const std::string& css) {
  rows_.push_back({std::move(cells), css});
}

std::string HtmlTable::str() const {
  if (rows_.empty()) return fmt::format("<p class=\"none\">{}: none.</p>\n", escape(caption_));
  const auto css = [&](size_t column) {
    return std::find(text_columns_.begin(), text_columns_.end(), column) != text_columns_.end() ? "t" : "n";
  };
  // display: block takes the roles away, so they are said
  std::string out =
      fmt::format("<table role=\"table\"{}><caption>{}</caption>\n<thead role=\"rowgroup\"><tr role=\"row\">",
                  header_.size() > kMostOnAPhone ? " class=\"cards\"" : "", escape(caption_));
  for (size_t c = 0; c < header_.size(); ++c) {
    out += fmt::format("<th role=\"columnheader\" scope=\"col\" class=\"{}\">{}</th>", css(c), header_[c]);
  }
  out += "</tr></thead>\n<tbody role=\"rowgroup\">\n";
  for (const Row& row : rows_) {
    out += row.css.empty() ? "<tr role=\"row\">" : fmt::format("<tr role=\"row\" class=\"{}\">", row.css);
    for (size_t c = 0; c < row.cells.size(); ++c) {
      if (c == 0) {
        out += fmt::format("<th role=\"rowheader\" scope=\"row\" class=\"t\">{}</th>", row.cells[c]);
      } else {
        out += fmt::format("<td role=\"cell\" class=\"{}\"><span class=\"h\">{}</span><span class=\"v\">{}</span></td>",
                           css(c), header_[c], row.cells[c]);
      }
    }
    out += "</tr>\n";
  }
  return out + "</tbody></table>\n";
}

std::string details(const std::string& summary, const std::string& content) {
  return fmt::format("<details><summary>{}</summary>\n{}</details>\n", summary, content);
}

}  // namespace refrain::report
