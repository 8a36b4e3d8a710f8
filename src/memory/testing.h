#pragma once

#include <cstdint>

/// For tests only: disturbs the process's CPU memory. Each function installs memory tracking. Threads: any.
namespace refrain::memory_testing {

/// The `n`-th CPU allocation from now (1 = the next; empty tensors and what a `MemoryLimit` refuses do not count) throws
/// `c10::OutOfMemoryError`, once. 0 switches it off.
void fail_nth_allocation(int64_t n);

/// Whether the failure asked for last has happened.
bool failure_fired();

/// While on, new memory is filled with 0xCB and freed memory with 0xDD.
void set_poison(bool on);

}  // namespace refrain::memory_testing
