#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace refrain::report {

/// Text made safe between tags and within quoted attributes of HTML and SVG. What neither may hold (control characters,
/// bytes that are not UTF-8) becomes U+FFFD.
std::string escape(std::string_view text);

/// Width in pixels of a line of the page's typeface, estimated from its characters; rather too large than too small.
double text_width(std::string_view text, double size);

/// `text` cut to `width` pixels, with an ellipsis if anything was cut. Not escaped.
std::string fit(std::string_view text, double width, double size);

/// A table; one of more than three columns becomes a list of cards on a narrow screen. Cells are markup; the first of a row is its heading.
class HtmlTable {
 public:
  /// @param caption  plain text, read before the table.
  HtmlTable(std::string caption, std::vector<std::string> header)
      : caption_(std::move(caption)), header_(std::move(header)) {}

  /// Columns of text, not of numbers; the first one always is.
  HtmlTable& text_columns(std::vector<size_t> columns);

  /// @param css  class of the row; empty for none.
  void add(std::vector<std::string> cells, const std::string& css = "");

  /// Without rows, a line that says so.
  std::string str() const;

 private:
  struct Row {
    std::vector<std::string> cells;
    std::string css;
  };
  std::string caption_;
  std::vector<std::string> header_;
  std::vector<size_t> text_columns_{0};
  std::vector<Row> rows_;
};

/// Content that is closed until asked for; open on paper.
std::string details(const std::string& summary, const std::string& content);

}  // namespace refrain::report
