#include "graph/scanner.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "refrain/error.h"

namespace refrain::graph {
namespace {

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

bool is_plain(char c) {
  return is_letter(c) || (c >= '0' && c <= '9') || std::string_view(".:/-").find(c) != std::string_view::npos;
}

bool is_plain_name(std::string_view text) {
  return !text.empty() && is_letter(text[0]) && text.back() != ':' && std::all_of(text.begin(), text.end(), is_plain);
}

}  // namespace

void Scanner::refuse(const std::string& expected) const { refuse_at(at_, found(), expected); }

void Scanner::refuse_at(size_t at, const std::string& found, const std::string& expected) const {
  const std::string_view before = text_.substr(0, at);
  const auto line = std::count(before.begin(), before.end(), '\n') + 1;
  const size_t column = at - (before.rfind('\n') + 1) + 1;  // npos + 1 is 0
  throw FormatError(fmt::format("line {}, column {}: found {}; expected {}", line, column, found, expected));
}

size_t Scanner::at() {
  skip_spaces();
  return at_;
}

bool Scanner::next_line() {
  while (at_line_end()) {
    if (at_ == text_.size()) return false;
    ++at_;
  }
  return true;
}

bool Scanner::at_line_end() {
  skip_spaces();
  return at_ == text_.size() || text_[at_] == '\n';
}

void Scanner::end_line() {
  if (!at_line_end()) refuse("the end of the line");
}

bool Scanner::at_name() {
  skip_spaces();
  return at_ < text_.size() && (text_[at_] == '"' || is_letter(text_[at_]));
}

bool Scanner::take(char c) {
  skip_spaces();
  if (at_ == text_.size() || text_[at_] != c) return false;
  ++at_;
  return true;
}

void Scanner::need(char c) {
  if (!take(c)) refuse(fmt::format("'{}'", c));
}

std::string Scanner::name(const char* expected) {
  if (!at_name()) refuse(expected);
  if (text_[at_] == '"') return quoted();
  const size_t from = at_;
  while (at_ < text_.size() && is_plain(text_[at_])) ++at_;
  while (text_[at_ - 1] == ':') --at_;
  return std::string(text_.substr(from, at_ - from));
}

int64_t Scanner::number(int64_t least, int64_t most) {
  const size_t from = at();
  int64_t number = 0;
  const auto [end, error] = std::from_chars(text_.data() + at_, text_.data() + text_.size(), number);
  const std::string expected = fmt::format("a number, {} to {}", least, most);
  if (error == std::errc::invalid_argument) refuse(expected);
  at_ = static_cast<size_t>(end - text_.data());
  if (error != std::errc() || number < least || number > most)
    refuse_at(from, std::string(text_.substr(from, at_ - from)), expected);
  return number;
}

void Scanner::skip_spaces() {
  while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\r')) ++at_;
  if (at_ < text_.size() && text_[at_] == '#') at_ = std::min(text_.find('\n', at_), text_.size());
}

std::string Scanner::found() const {
  if (at_ >= text_.size()) return "the end of the text";
  if (text_[at_] == '\n') return "the end of the line";
  size_t end = at_ + 1;
  while (is_plain(text_[end - 1]) && end < text_.size() && is_plain(text_[end])) ++end;
  return fmt::format("'{}'", text_.substr(at_, end - at_));
}

std::string Scanner::quoted() {
  std::string text;
  for (++at_; at_ < text_.size() && text_[at_] != '\n';) {
    const char c = text_[at_++];
    if (c == '"') return text;
    text += c == '\\' ? escaped() : c;
  }
  refuse("a closing quote");
}

char Scanner::escaped() {
  const char c = at_ < text_.size() ? text_[at_] : '\n';
  if (c == '"' || c == '\\') return text_[at_++];
  unsigned code = 0;
  const char* from = text_.data() + at_ + 1;
  if (c != 'x' || text_.size() - at_ < 3 || std::from_chars(from, from + 2, code, 16).ptr != from + 2)
    refuse("one of \\\", \\\\ and \\x with two digits");
  at_ += 3;
  return static_cast<char>(code);
}

std::string name_text(const std::string& name) {
  if (is_plain_name(name)) return name;
  std::string text = "\"";
  for (const char c : name) {
    const auto code = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\')
      text += {'\\', c};
    else if (code < ' ' || code == 0x7f)
      text += fmt::format("\\x{:02x}", code);
    else
      text += c;
  }
  return text + "\"";
}

}  // namespace refrain::graph
