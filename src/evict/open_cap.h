#pragma once

namespace refrain::tape {

/// Records everything on threads that include the tape's key, from the first to the last of nested calls. Threads: any.
void open_cap();
/// The last one recomputes what is evicted. What cannot be recomputed stays evicted; reading it throws.
void close_cap();
/// Records what this thread does too. @return false if there is no cap, or it does already.
bool join_cap();
/// Ends that.
void leave_cap();

}  // namespace refrain::tape
