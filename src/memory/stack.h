#pragma once

#include <ATen/core/Tensor.h>

#include "memory/limiting_allocator.h"
#include "memory/resident_allocator.h"
#include "memory/tracking_allocator.h"
#include "refrain/budget.h"

/// The process's memory stack, for internal users. Each function installs tracking.
namespace refrain {

struct Block;

TrackingAllocator& tracking_allocator();
LimitingAllocator& limiting_allocator();
ResidentAllocator& resident_allocator();
/// Sets the relief under limits of both kinds; null for none. @param relief  lives forever.
void set_relief(LimitingAllocator::Relief* relief);
/// Refuses a budget that only a plan can keep. @throws InvalidArgument that names `who`, such as "MemoryCap"
void refuse_fraction(const Budget& budget, const char* who);
/// See `MemoryStats`.
Bytes resident_before();
/// Whether the stack allocated `data`.
bool is_tracked(const at::DataPtr& data);

/// Finds the block of the storage of `tensor`; null if it is undefined, has no plain storage or no bytes, or got its
/// memory elsewhere: before tracking was installed, from `from_blob`, on another device.
const Block* tracked_block(const at::Tensor& tensor);

}  // namespace refrain
