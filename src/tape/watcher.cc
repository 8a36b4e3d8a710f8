#include "tape/watcher.h"

#include <optional>

#include "intercept/key.h"
#include "intercept/saving.h"
#include "intercept/storage_barrier.h"
#include "intercept/storage_copy.h"
#include "tape/barrier_pause.h"
#include "tape/cap.h"
#include "tape/draws.h"
#include "tape/written.h"

namespace refrain::tape {

void run_unrecorded(Below below, const Arguments& arguments) {
  Writes<Write, 2> writes;
  BarrierPause pause;
  bool barrier = false;
  const auto look = [&](const Argument& argument) {
    if (!argument.storage) return;
    if (argument.write) write_to(writes, *argument.tensor);
    barrier |= has_barrier(argument.storage);
  };
  for (const auto& argument : arguments) look(argument);
  for (const auto& argument : arguments.inside()) look(argument);
  if (writes.empty() && !barrier) return below();

  auto& thread = ThreadState::get();
  c10::SmallVector<Write*, 2> to_copy;
  {
    TapeLock lock;
    settle_writes(lock, thread);
    const auto lift = [&](const Argument& argument) {
      if (auto* value = argument.storage ? find_value(lock, argument.storage) : nullptr) pause.lift(value);
    };
    if (barrier) {
      for (const auto& argument : arguments) lift(argument);
      for (const auto& argument : arguments.inside()) lift(argument);
    }
    for (auto& write : writes) {
      auto* value = find_value(lock, write.storage.unsafeGetStorageImpl());
      if (value && should_copy(lock, *value, 0)) to_copy.push_back(&write);
    }
  }
  try {
    for (auto* write : to_copy) write->copy = clone_storage(write->storage);
    below();
  } catch (...) {
    forget_written(writes, pause, thread.unsettled);
    throw;
  }
  TapeLock lock;
  for (auto& write : writes) {
    auto* value = find_value(lock, write.storage.unsafeGetStorageImpl());
    if (!value) continue;
    if (value->unknown && !write.moved()) continue;
    overwritten(lock, value, std::move(write.copy), nullptr, thread.unsettled);
  }
  pause.restore(lock);
}

namespace {

void run_watched(const OpTraits& traits, torch::jit::Stack* stack, Below below, ThreadState& thread) {
  if (Tape::get().pending_slots.load(std::memory_order_relaxed) > 0) {
    if (!thread.unsettled.empty()) {  // backward may run on another thread
      TapeLock lock;
      settle_writes(lock, thread);
    }
    return run_unrecorded(below, Arguments(traits, *stack));
  }
  if (thread.saver) return below();  // a rerun region's or an `OffloadScope`'s: they see operators
  if (!thread.unsettled.empty() || !thread.unknown_slots.empty()) {
    TapeLock lock;
    settle(lock, thread);
  }
  if (!is_cap_open()) set_tape_included(false);
  below();
}

}  // namespace

void run_drawing(const OpTraits& traits, const torch::jit::Stack& stack, Below below, const ThreadState& thread) {
  const auto generator = generator_of(stack, traits.num_args);
  if (!generator.defined()) return below();
  std::optional<DrawScope> draw;
  {
    const BelowTape below_tape;
    draw.emplace(thread.open, generator, traits);
  }
  if (traits.maybe_random) draw->unlock();  // it may wait for another thread, or reenter
  below();
  const BelowTape below_tape;
  draw->finish();
}

void watch(const OpTraits& traits, torch::jit::Stack* stack, Below below) {
  auto& thread = ThreadState::get();
  if (thread.offloads) thread.offloads->begins();
  const bool may_help = thread.offloads && may_be_helper(traits, *stack);
  if (thread.draws && traits.may_draw())
    run_watched(
        traits, stack, [&] { run_drawing(traits, *stack, below, thread); }, thread);
  else
    run_watched(traits, stack, below, thread);
  if (thread.offloads && !may_help) thread.offloads->returned(!traits.writes.empty());
}

}  // namespace refrain::tape
