#pragma once

#include <string>
#include <string_view>

namespace refrain::tape {

/// Scopes that the library itself opens on this thread, for traces only: `module_scope`, and so policies, do not see
/// them. They nest with `ModuleScope`s as they were opened. Each is closed before the `ModuleScope` around it.

/// Whether this thread has a listener. Cost: one load if not.
bool has_trace_listener();
void open_trace_scope(std::string_view name);
void close_trace_scope();
/// Path of scopes of both kinds, in order of opening, with dots.
std::string trace_path();

}  // namespace refrain::tape
