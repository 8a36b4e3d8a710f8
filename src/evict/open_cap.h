#pragma once

namespace refrain::tape {

/// Records everything on threads that include the tape's key, from the first to the last of nested calls. Threads: any.
void open_cap();
/// Ends a call of `open_cap`; the last one recomputes what is evicted. What cannot be recomputed stays evicted; reading
/// it throws.
void close_cap();
/// Records this thread too. @return false if there is no cap, or it is recorded already.
bool join_cap();
/// Ends `join_cap`.
void leave_cap();

}  // namespace refrain::tape
