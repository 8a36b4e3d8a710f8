#pragma once

namespace refrain::tape {

/// Records everything on threads that include the tape's key, from the first to the last of nested calls. Threads: any.
/// @param always  also where nothing will have to leave, see rest.h.
void open_cap(bool always);
/// Ends a call of `open_cap`; the last one recomputes what is evicted. What cannot be recomputed stays evicted; reading
/// it throws.
/// @param always  as of that call.
void close_cap(bool always);
/// Records this thread too. @return false if there is no cap, or it is recorded already.
bool join_cap();
/// Ends `join_cap`.
void leave_cap();

}  // namespace refrain::tape
