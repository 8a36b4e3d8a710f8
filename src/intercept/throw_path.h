#pragma once

namespace refrain::tape {

/// Whether an exception thrown by the caller, of a type that no handler names, would reach the stack frame that holds
/// `frame`: no function in between is `noexcept` (destructors are), catches everything, or has no unwind tables. Reads
/// what the run time itself reads when it looks for a handler (the tables of the Itanium C++ ABI). @return false where
/// it cannot tell.
/// Cost: about 1 us for each function in between, as throwing.
bool can_throw_to(const void* frame);

}  // namespace refrain::tape
