#include "intercept/key.h"
#include "offload/region_inputs.h"
#include "refrain/checkpoint.h"
#include "replay/replay_slot.h"
#include "tape/region.h"
#include "tape/region_work.h"
#include "tape/thread_state.h"

namespace refrain {

bool is_checkpointing() noexcept {
  const auto& thread = tape::ThreadState::get();
  return thread.region || thread.open_reruns > 0 || thread.planned_regions > 0;
}

bool is_recomputing() noexcept { return tape::ThreadState::get().recomputing; }

bool set_checkpointing_enabled(bool value) { return tape::set_regions_enabled(value); }

NoCheckpointGuard::NoCheckpointGuard() { ++tape::ThreadState::get().disabled; }

NoCheckpointGuard::~NoCheckpointGuard() { --tape::ThreadState::get().disabled; }

}  // namespace refrain

namespace refrain::detail {

RegionScope::RegionScope(const CheckpointOptions& options) {
  if (tape::plain_call()) return;
  is_planned_ = tape::plan_chooses(options);
  if (is_planned_) {
    ++tape::ThreadState::get().planned_regions;
    return;
  }
  tape::use_replay_slots();
  region_ = tape::open_region(options);
  tape::set_tape_included(true);
}

RegionScope::~RegionScope() {
  if (is_planned_) --tape::ThreadState::get().planned_regions;
  if (!region_) return;
  auto* region = static_cast<tape::Region*>(region_);
  if (region->work) region->work->forward_ended();
  tape::close_region(region);
  tape::leave_dispatch();
}

void RegionScope::add_input(const at::Tensor& tensor) {
  if (region_) tape::add_input(static_cast<tape::Region*>(region_), tensor);
}

}  // namespace refrain::detail
