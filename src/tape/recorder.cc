#include "tape/recorder.h"

#include <optional>

#include "intercept/for_each_tensor.h"
#include "tape/arguments.h"
#include "tape/cap.h"
#include "tape/capped_op.h"
#include "tape/recording.h"
#include "tape/thread_state.h"
#include "tape/watcher.h"

namespace refrain::tape {
namespace {

void fix_results(TapeLock& lock, const OpTraits& traits, const torch::jit::Stack& stack) {
  for_each_tensor(stack.data() + (stack.size() - traits.num_returns), traits.num_returns,
                  [&](const at::Tensor& tensor, size_t, int32_t) {
                    if (!has_plain_storage(tensor)) fix_inside(lock, tensor);
                  });
}

// Whether it updates statistics (`ReplayArg::kScratch`, `kUndefined`) in memory that it reads through another argument
// too: the kernel may read what it has just written, and a replay, which has other memory for the statistics, would
// not.
bool reads_what_moves_once(const OpTraits& traits, const Arguments& arguments) {
  if (!traits.moves_once) return false;
  const auto moves = [](const Argument& argument) {
    return argument.write &&
           (argument.write->replay == ReplayArg::kScratch || argument.write->replay == ReplayArg::kUndefined);
  };
  for (const auto& written : arguments)
    for (const auto& read : arguments)
      if (moves(written) && !moves(read) && written.storage && read.storage == written.storage) return true;
  return false;
}

// Runs an operator in a region, or under a cap, or both.
void run_under_tape(const OpTraits& traits, c10::DispatchKeySet keys, torch::jit::Stack* stack, Below below,
                    ThreadState& thread, Region* cap) {
  std::optional<CappedOp> capped;
  if (cap) capped.emplace(cap_hooks(), traits, *stack);
  Arguments arguments(traits, *stack);
  std::optional<Recording> recording;
  const bool in_cap = !thread.region;
  // sparse, quantized and other tensors that the tape cannot name
  if (!traits.effect && !reads_what_moves_once(traits, arguments) &&
      (in_cap ? arguments.all_plain() : arguments.written_plain()))
    recording.emplace(traits, keys, stack, arguments, thread, in_cap ? cap : thread.region).prepare();
  bool is_ready = true;
  {
    TapeLock lock;
    if (cap) is_ready = capped->begin(lock, arguments);
    if (is_ready && recording) recording->read_arguments(lock);
  }
  if (!is_ready) {
    capped->materialize();
    TapeLock lock;
    capped->begun(lock);
    if (recording) recording->read_arguments(lock);
  }
  if (recording)
    recording->run(below);
  else if (thread.draws && traits.may_draw())
    run_unrecorded([&] { run_drawing(traits, *stack, below, thread); }, arguments);
  else
    run_unrecorded(below, arguments);
  {
    TapeLock lock;
    if (recording)
      recording->note_results(lock);
    else if (cap)
      fix_results(lock, traits, *stack);
    if (capped) capped->end(lock);
  }
  if (recording)
    recording->rethrow_failure();
  else if (thread.observer)
    thread.observer->ran_effect(traits, *stack);
}

void note_metadata_change(const OpTraits& traits, const torch::jit::Stack& stack) {
  const auto& self = stack[stack.size() - traits.num_args].toTensor();
  if (!self.defined() || !has_plain_storage(self)) return;
  TapeLock lock;
  settle_writes(lock, ThreadState::get());
  if (auto* value = find_value(lock, self.storage().unsafeGetStorageImpl())) ++value->metadata_bumps;
}

}  // namespace

namespace {

void run_seen(const OpTraits& traits, c10::DispatchKeySet keys, torch::jit::Stack* stack, Below below,
              ThreadState& thread) {
  if (traits.metadata_in_place) note_metadata_change(traits, *stack);
  auto* cap = Tape::get().cap.load(std::memory_order_relaxed);
  if (!thread.region && !cap) return watch(traits, stack, below);
  if (traits.view_only) return below();
  run_under_tape(traits, keys, stack, below, thread, cap);
}

// Runs an operator of a rerun region's function.
void run_compared(const OpTraits& traits, c10::DispatchKeySet keys, torch::jit::Stack* stack, Below below,
                  ThreadState& thread) {
  if (thread.stop) thread.stop->before(traits, *stack);
  auto* const trace = thread.trace;
  if (trace) trace->before(traits, *stack);
  run_seen(traits, keys, stack, below, thread);
  if (trace) trace->after(traits, *stack);
  if (thread.stop) thread.stop->after(traits, *stack);
}

}  // namespace

void look_at(const OpTraits& traits, c10::DispatchKeySet keys, torch::jit::Stack* stack, Below below) {
  auto& thread = ThreadState::get();
  if (thread.stop || thread.trace) return run_compared(traits, keys, stack, below, thread);
  run_seen(traits, keys, stack, below, thread);
}

bool looks_at_views() {
  const auto& thread = ThreadState::get();
  return thread.stop || thread.trace || !(thread.region || is_capped());
}

bool sees_nothing() {
  const auto& tape = Tape::get();
  if (!tape.rests.load(std::memory_order_relaxed)) return false;
  const auto& thread = ThreadState::get();
  return !thread.region && !thread.saver && !thread.trace && !thread.stop && !thread.draws && !thread.offloads &&
         thread.unsettled.empty() && thread.unknown_slots.empty() &&
         tape.pending_slots.load(std::memory_order_relaxed) == 0;
}

void look_at_boxed(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  if (sees_nothing()) {
    const UnseenScope below;
    return op.redispatchBoxed(keys & kBelowTape, stack);
  }
  const auto& traits = op_traits(op);
  look_at(traits, keys, stack, [&] {
    const UnseenScope below;
    traits.handle.redispatchBoxed(keys & kBelowTape, stack);
  });
}

}  // namespace refrain::tape
