#pragma once

#include <functional>

namespace refrain::tape {

/// Calls `fn` at the end of the backward that runs on this thread now, after those asked for before. An exception from
/// it is one of that backward.
void after_backward(std::function<void()> fn);

}  // namespace refrain::tape
