#include "tape/region.h"

#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/forward_grad.h>

#include <exception>

#include "intercept/key.h"
#include "intercept/saved_hooks.h"
#include "refrain/error.h"
#include "tape/cap.h"
#include "tape/engine.h"
#include "tape/lifetime.h"
#include "tape/region_end.h"
#include "tape/region_work.h"
#include "tape/slots.h"
#include "tape/step_listener.h"
#include "tape/thread_state.h"

namespace refrain::tape {
namespace {

std::atomic<bool> checkpointing_enabled{true};

// Whether the remaining values of a region were computed from something that requires a gradient.
bool reads_gradient(TapeLock& lock, const Region* region) {
  const uint64_t number = ++lock.tape().plan_number;
  std::vector<Value*> todo(region->values);
  while (!todo.empty()) {
    auto* op = todo.back()->producer;
    todo.pop_back();
    if (!op || op->mark == number) continue;
    op->mark = number;
    for (const auto& ref : op->refs_in) {
      if (ref.meta.requires_grad) return true;
      if (ref.value) todo.push_back(ref.value);
    }
  }
  return false;
}

// Releases values that policies saved under `top`, which is closing, and that no pending slot can need.
void release_unneeded(TapeLock& lock, Region* top) {
  std::vector<Region*> regions{top};
  for (size_t i = 0; i < regions.size(); ++i)
    regions.insert(regions.end(), regions[i]->children.begin(), regions[i]->children.end());

  // A replay for the pending slots needs these, down to saved values.
  const uint64_t number = ++lock.tape().plan_number;
  std::vector<Value*> todo;
  const auto reach = [&](Value* value) {
    if (value->mark == number) return;
    value->mark = number;
    todo.push_back(value);
  };
  for (auto* region : regions) {
    for (auto* slot = region->slots; slot; slot = slot->in_region.next)
      if (slot->value && !slot->holds) reach(slot->value);
    for (auto& bound : region->bounds) reach(bound.value);
  }
  while (!todo.empty()) {
    auto* value = todo.back();
    todo.pop_back();
    if (!value->producer || value->offloaded || (value->saved && value->held)) continue;
    for (auto& ref : value->producer->refs_in)
      if (ref.value) reach(ref.value);
  }
  for (auto* region : regions) {
    for (auto* value : region->values) {
      auto* op = value->producer;
      if (!op || op->mark == number) continue;
      op->mark = number;
      for (auto& ref : op->refs_in) {
        if (!ref.value || ref.value->mark == number) continue;
        if (!ref.value->is_in_store()) lock.discard(std::move(ref.value->offloaded));
        if (!ref.holds || !ref.value->saved) continue;
        ref.holds = false;
        unhold(lock, ref.value);
      }
    }
  }
}

// Ends a region in which nothing more is recorded, inside neither.
void end_region(TapeLock& lock, Region* region) {
  region->active = false;
  if (region->parent) --region->parent->open_children;
  for (auto* value : region->values)
    if (value->map_owns && value->storage.expired()) unmap_value(lock, value);
  if (region->selective) release_unneeded(lock, region);
  for (auto* value : std::exchange(region->inputs, {})) lock.release(value);
  close_if_done(lock, region);
  lock.release(region);
}

}  // namespace

bool set_regions_enabled(bool value) { return checkpointing_enabled.exchange(value); }

bool plain_call() {
  const auto& thread = ThreadState::get();
  // A rerun has the settings of forward.
  return !c10::GradMode::is_enabled() || thread.disabled ||
         (!thread.recomputing && !checkpointing_enabled.load(std::memory_order_relaxed));
}

void refuse_unsupported_modes() {
  if (c10::InferenceMode::is_enabled())
    throw InvalidArgument(
        "[refrain::checkpoint] called in inference mode with gradients enabled; inference mode keeps no graph to "
        "checkpoint. Use `torch::NoGradGuard`, or leave inference mode.");
  if (torch::autograd::ForwardADLevel::try_get_by_idx(0))
    throw InvalidArgument(
        "[refrain::checkpoint] called under forward-mode AD; only reverse mode has saved tensors to save on. Call the "
        "function directly.");
  if (c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode))
    throw InvalidArgument(
        "[refrain::checkpoint] called under vmap or another functorch transform, which the tape cannot see through. Call "
        "the function directly, or checkpoint outside the transform.");
}

void leave_dispatch() {
  const auto& thread = ThreadState::get();
  const auto& tape = Tape::get();
  if (!thread.region && !thread.saver && !is_cap_open() && tape.pending_slots.load(std::memory_order_relaxed) == 0)
    set_tape_included(false);
}

namespace {

void check(const CheckpointOptions& options) {
  if (options.context_fn())
    throw InvalidArgument(
        "[refrain::checkpoint] context_fn is for recompute_mode(kRerunFunction): with kReplayOperators the function is called only once. Enter the "
        "scope inside the function.");
  refuse_unsupported_modes();
}

}  // namespace

bool plan_chooses(const CheckpointOptions& options) {
  const auto& thread = ThreadState::get();
  if (!step_listener() || thread.region || thread.saver || thread.observer || options.policy() ||
      options.input_storage())
    return false;
  check(options);
  return true;
}

Region* open_region(const CheckpointOptions& options) {
  check(options);
  install();
  auto work = options.input_storage() ? options.input_storage()->open(options) : nullptr;
  auto& thread = ThreadState::get();
  auto* region = new Region;
  region->work = std::move(work);
  region->thread_state = std::make_unique<at::ThreadLocalState>();
  region->preserve_rng_state = options.preserve_rng_state();
  region->policy = options.policy();
  region->offload = options.offload() ? options.offload() : offload_store();
  region->hook_depth = saved_hook_depth();
  region->refs = 1;
  region->parent = thread.region;
  region->top = region->parent ? region->parent->top : region;
  region->top->selective |= region->policy != nullptr;
  TapeLock lock;
  settle(lock, thread);
  if (region->parent) {
    ++region->parent->refs;
    ++region->parent->open_children;
    region->parent->children.push_back(region);
  }
  ++lock.tape().stats.live_regions;
  thread.opened({.owner = region, .region = region});
  if (thread.observer) thread.observer->opened(region);
  return region;
}

void close_region(Region* region) {
  auto& thread = ThreadState::get();
  bool for_nothing = false;
  {
    TapeLock lock;
    settle(lock, thread);
    for_nothing = region->live_slots == 0 && std::uncaught_exceptions() == 0 && reads_gradient(lock, region);
    thread.closed(region);
    region->is_open = false;
    // An enclosing region waits for those inside, also if its scope ends first.
    for (auto* at = region; at && !at->is_open && at->open_children == 0;) {
      auto* parent = at->parent;
      end_region(lock, at);
      at = parent;
    }
  }
  if (for_nothing) {
    TORCH_WARN_ONCE(
        "[refrain::checkpoint] autograd saved nothing in a region whose inputs or parameters require gradients. The "
        "gradients are those of a direct call; if there should be some, look for no_grad or detach inside the "
        "function, else call it without checkpoint.");
  }
}

}  // namespace refrain::tape
