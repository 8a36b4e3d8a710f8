#pragma once

namespace refrain::tape {

/// Sets the function that is called on a thread after its `module_scope` changed; null for none. Process-wide.
void on_module_scope_change(void (*call)());

}  // namespace refrain::tape
