#pragma once

namespace refrain::tape {

/// Wraps functions of LibTorch's that read pointers and have no operator below autograd: the tape's kernel never sees
/// them, so under a cap the wrappers make their arguments resident first. May be called any number of times.
void add_composite_ops();

}  // namespace refrain::tape
