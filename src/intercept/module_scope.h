#pragma once

namespace refrain::tape {

/// `call` is called on a thread after its `module_scope` has become another one; null for nothing. Process-wide.
void on_module_scope_change(void (*call)());

}  // namespace refrain::tape
