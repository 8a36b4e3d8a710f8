#pragma once

#include <string>
#include <string_view>

namespace refrain::tape {

/// Names that the library itself gives to what runs on this thread, for traces: `module_scope`, and so policies, do not
/// have them. They lie between those of `ModuleScope`s as they were opened. Each is closed before the `ModuleScope`
/// around it.

/// Whether anybody listens to this thread. Cost: one load if not.
bool has_trace_listener();
void open_trace_scope(std::string_view name);
void close_trace_scope();
/// Names of both kinds, in order of opening, with dots.
std::string trace_path();

}  // namespace refrain::tape
