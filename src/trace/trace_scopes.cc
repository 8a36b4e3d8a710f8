#include "trace/trace_scopes.h"

#include <algorithm>
#include <vector>

#include "refrain/detail/trace_scope.h"
#include "refrain/selective.h"
#include "tape/step_listener.h"

namespace refrain::tape {
namespace {

struct Opened {
  size_t at;  ///< length of `module_scope` then
  std::string name;
};

std::vector<Opened>& opened() {
  static thread_local std::vector<Opened> list;
  return list;
}

void append(std::string& path, std::string_view part) {
  if (part.starts_with('.')) part.remove_prefix(1);
  if (part.empty()) return;
  if (!path.empty()) path += '.';
  path += part;
}

}  // namespace

bool has_trace_listener() { return step_listener() != nullptr; }

void open_trace_scope(std::string_view name) {
  opened().push_back({module_scope().size(), std::string(name)});
  tell_scope_changed();
}

void close_trace_scope() {
  opened().pop_back();
  tell_scope_changed();
}

std::string trace_path() {
  const auto named = module_scope();
  if (opened().empty()) return std::string(named);
  std::string path;
  size_t from = 0;
  for (const auto& scope : opened()) {
    const auto at = std::min(scope.at, named.size());
    append(path, named.substr(from, at - from));
    append(path, scope.name);
    from = at;
  }
  append(path, named.substr(from));
  return path;
}

}  // namespace refrain::tape

namespace refrain::detail {

void TraceScope::open(std::string_view name) {
  tape::open_trace_scope(name);
  is_open_ = true;
}

TraceScope::TraceScope(std::string_view row, int64_t number) {
  if (tape::has_trace_listener()) open(std::string(row) + '.' + std::to_string(number));
}

TraceScope::~TraceScope() {
  if (is_open_) tape::close_trace_scope();
}

}  // namespace refrain::detail
