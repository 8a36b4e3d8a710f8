#include "intercept/module_scope.h"

#include <atomic>
#include <string>

#include "refrain/selective.h"

namespace refrain {
namespace {

std::atomic<void (*)()> on_change{nullptr};

std::string& scope_path() {
  static thread_local std::string path;
  return path;
}

void changed() {
  if (auto* call = on_change.load(std::memory_order_relaxed)) call();
}

}  // namespace

namespace tape {

void on_module_scope_change(void (*call)()) { on_change.store(call); }

}  // namespace tape

ModuleScope::ModuleScope(std::string_view name) : length_(scope_path().size()) {
  auto& path = scope_path();
  if (!path.empty()) path += '.';
  path += name;
  changed();
}

ModuleScope::~ModuleScope() {
  if (scope_path().size() > length_) scope_path().resize(length_);  // else an enclosing one ended first
  changed();
}

std::string_view module_scope() noexcept { return scope_path(); }

}  // namespace refrain
