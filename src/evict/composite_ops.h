#pragma once

namespace refrain::tape {

/// Puts kernels of ours over functions of LibTorch's that read pointers and have no operator below autograd: the tape's kernel never
/// sees them, so under a cap their arguments are made resident first. Any number of times.
void add_composite_ops();

}  // namespace refrain::tape
