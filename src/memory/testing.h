#pragma once

#include <cstdint>

/// Disturbs the process's CPU memory, for tests only. Each function installs memory tracking. Threads: any.
namespace refrain::memory_testing {

/// Makes the `n`-th CPU allocation from now (1 = the next; empty tensors and those that a `MemoryLimit` refuses do not
/// count) throw `c10::OutOfMemoryError`, once. 0 switches it off.
void fail_nth_allocation(int64_t n);

/// Whether the failure set last has happened.
bool failure_fired();

/// Fills new memory with 0xCB and freed memory with 0xDD while on.
void set_poison(bool on);

}  // namespace refrain::memory_testing
