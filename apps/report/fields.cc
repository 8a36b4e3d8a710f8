#include "apps/report/fields.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "refrain/error.h"

namespace refrain::report {
namespace {

using Json = nlohmann::json;

constexpr size_t kLongestShown = 40;

std::string show(const Json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "a list";
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > kLongestShown) text = text.substr(0, kLongestShown) + "...";
  return text;
}

[[noreturn]] void fail(const std::string& document, const std::string& path, const std::string& found,
                       const std::string& expected) {
  throw FormatError(fmt::format(
      "[refrain::report] {}: {}: found {}, expected {}; write it again with --json, or see docs/design/report.md",
      document, path.empty() ? "the document" : "`" + path + "`", found, expected));
}

}  // namespace

void Field::refuse(const std::string& expected) const { fail(document_, path_, show(*value_), expected); }

void Field::refuse(const std::string& found, const std::string& expected) const {
  fail(document_, path_, found, expected);
}

std::string Field::shown() const { return show(*value_); }

Field Field::member(const std::string& name, const Json& value) const {
  return {value, document_, path_.empty() ? name : path_ + "." + name};
}

Field Field::operator[](const std::string& name) const {
  if (!value_->is_object()) refuse("an object");
  const auto found = value_->find(name);
  if (found == value_->end()) fail(document_, path_.empty() ? name : path_ + "." + name, "nothing", "this member");
  return member(name, *found);
}

std::optional<Field> Field::find(const std::string& name) const {
  if (!value_->is_object()) refuse("an object");
  const auto found = value_->find(name);
  if (found == value_->end() || found->is_null()) return std::nullopt;
  return member(name, *found);
}

std::vector<Field> Field::items() const {
  if (!value_->is_array()) refuse("a list");
  std::vector<Field> list;
  list.reserve(value_->size());
  for (size_t i = 0; i < value_->size(); ++i) {
    list.push_back(Field((*value_)[i], document_, fmt::format("{}[{}]", path_, i)));
  }
  return list;
}

std::vector<std::pair<std::string, Field>> Field::members() const {
  if (!value_->is_object()) refuse("an object");
  std::vector<std::pair<std::string, Field>> list;
  for (const auto& [name, value] : value_->items()) list.emplace_back(name, member(name, value));
  return list;
}

std::string Field::text() const {
  if (!value_->is_string()) refuse("a text");
  return value_->get<std::string>();
}

bool Field::truth() const {
  if (!value_->is_boolean()) refuse("true or false");
  return value_->get<bool>();
}

int64_t Field::integer(const char* expected) const {
  const bool is_large = value_->is_number_unsigned() &&
                        value_->get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  if (!value_->is_number_integer() || is_large || value_->get<int64_t>() < 0) refuse(expected);
  return value_->get<int64_t>();
}

int64_t Field::count() const { return integer("an integer from 0 to 2^63 - 1"); }

int64_t Field::bytes() const { return integer("a number of bytes, an integer from 0 to 2^63 - 1"); }

double Field::number() const {
  if (!value_->is_number() || !std::isfinite(value_->get<double>())) refuse("a number");
  return value_->get<double>();
}

double Field::duration() const {
  if (!value_->is_number() || !std::isfinite(value_->get<double>()) || value_->get<double>() < 0) {
    refuse("a time, 0 or more");
  }
  return value_->get<double>();
}

}  // namespace refrain::report
