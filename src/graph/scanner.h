#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace refrain::graph {

/// Reads the tokens of the text form (graph/text.h) and keeps its position. Spaces and comments before a token are
/// skipped.
///
/// Throws `FormatError` with line and column for unexpected text. Refers to the text.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}

  bool next_line();  ///< moves to the next line that is not empty; false: none is left
  bool at_line_end();
  void end_line();  ///< expects the end of the line

  bool at_name();
  bool take(char c);  ///< whether `c` came next; takes it if so
  void need(char c);
  std::string name(const char* expected);  ///< plain or in quotes
  int64_t number(int64_t least, int64_t most);

  /// Position of the next token, for `refuse_at`.
  size_t at();
  [[noreturn]] void refuse(const std::string& expected) const;
  [[noreturn]] void refuse_at(size_t at, const std::string& found, const std::string& expected) const;

 private:
  void skip_spaces();
  std::string found() const;
  std::string quoted();
  char escaped();

  std::string_view text_;
  size_t at_ = 0;
};

/// Writes `name` as `Scanner::name` reads it, in quotes only where it needs them.
std::string name_text(const std::string& name);

}  // namespace refrain::graph
