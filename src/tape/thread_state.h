#pragma once

#include <ATen/core/stack.h>

#include <memory>
#include <vector>

#include "tape/lifetime.h"
#include "tape/op_watch.h"
#include "tape/open_scopes.h"
#include "tape/saver.h"
#include "tape/tape.h"

namespace refrain::tape {

/// Recording state of one thread, and writes that it still has to settle.
struct ThreadState {
  Region* region = nullptr;               ///< innermost open region, owned by its scope
  Saver* saver = nullptr;                 ///< overrides `region`: a rerun region's, in forward or in its rerun
  OpWatch* trace = nullptr;               ///< notes every operator
  SavedObserver* observer = nullptr;      ///< of the `saved_tensors` that runs
  OpWatch* stop = nullptr;                ///< stops the function in its rerun
  Draws* draws = nullptr;                 ///< of the innermost function of a rerun region
  LateSaver* offloads = nullptr;          ///< holds saved arguments of an operator that may not have run yet
  const OpTraits* operands_of = nullptr;  ///< the operator that runs under a cap
  int64_t made_room_ns = 0;               ///< spent in allocations, selecting what to evict
  int open_reruns = 0;                    ///< rerun regions in forward
  int planned_regions = 0;                ///< open ones whose operators are planned with the rest of the step
  int engine_runs = 0;                    ///< `EngineRun`s alive on this thread
  bool* engine_probe = nullptr;           ///< set while `install` tests whether an engine leads to the tape
  bool recomputing = false;               ///< a replay pass or a rerun is running on this thread
  int disabled = 0;                       ///< `NoCheckpointGuard`s
  uint64_t listener_scope = 0;            ///< number of the last `ListenerScope` opened here
  GuardedValue<bool> early_stop, debug;
  /// In order of opening; `region`, `saver`, `trace`, `draws` and `open_reruns` follow from it.
  std::vector<OpenScope> open;
  std::vector<Unsettled> unsettled;
  std::vector<Value*> unknown_slots;  ///< owned and held: packed while unknown, decided at the next operator
  /// Of the operators that run, one in the other, and spare ones.
  std::vector<std::unique_ptr<torch::jit::Stack>> stacks;
  size_t stacks_in_use = 0;
  ThreadState() = default;
  ~ThreadState();
  ThreadState(const ThreadState&) = delete;
  ThreadState& operator=(const ThreadState&) = delete;
  static ThreadState& get() { return current ? *current : make(); }

  void opened(const OpenScope& scope);
  /// Closes a scope, in any order. @return whether it was opened on this thread.
  bool closed(const void* owner);

 private:
  void follow_open();
  static ThreadState& make();
  // One pointer in static thread-local storage: reading it is a load, not a call.
  [[gnu::tls_model("initial-exec")]] static thread_local ThreadState* current;
};

/// Settles writes that waited for a version bump.
void settle_writes(TapeLock& lock, ThreadState& thread);
/// Settles slots packed on unknown bytes that no operator has written since: the bytes become leaves.
void settle_unknown(TapeLock& lock, ThreadState& thread);
/// Settles both. At every event but a pack and the start of an operator, which may be the one that fills the unknown
/// bytes.
void settle(TapeLock& lock, ThreadState& thread);

}  // namespace refrain::tape
