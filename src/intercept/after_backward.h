#pragma once

#include <functional>

namespace refrain::tape {

/// Calls `fn` at the end of the backward that runs on this thread now, after the functions registered before it. An
/// exception from `fn` is thrown by that backward.
void after_backward(std::function<void()> fn);

}  // namespace refrain::tape
