#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace refrain::report {

/// A member of a document that knows where it stands, so that a wrong one can be named. Refers to the document.
///
/// All readers throw `FormatError`: document, path of the member, what was found, what was expected.
class Field {
 public:
  /// The whole document. @param document  what errors call it.
  Field(const nlohmann::json& value, std::string document) : value_(&value), document_(std::move(document)) {}

  /// A member that must be there.
  Field operator[](const std::string& name) const;

  /// A member that may be missing or null.
  std::optional<Field> find(const std::string& name) const;

  std::vector<Field> items() const;                            ///< of a list
  std::vector<std::pair<std::string, Field>> members() const;  ///< of an object

  std::string text() const;
  bool truth() const;
  int64_t count() const;    ///< an integer, 0 or more
  int64_t bytes() const;    ///< likewise
  double number() const;    ///< finite
  double duration() const;  ///< finite, 0 or more

  [[noreturn]] void refuse(const std::string& expected) const;
  [[noreturn]] void refuse(const std::string& found, const std::string& expected) const;
  std::string shown() const;  ///< as errors show it

  const nlohmann::json& json() const { return *value_; }

 private:
  Field(const nlohmann::json& value, std::string document, std::string path)
      : value_(&value), document_(std::move(document)), path_(std::move(path)) {}
  Field member(const std::string& name, const nlohmann::json& value) const;
  int64_t integer(const char* expected) const;

  const nlohmann::json* value_;
  std::string document_;
  std::string path_;
};

}  // namespace refrain::report
