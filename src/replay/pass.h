#pragma once

#include <ATen/core/stack.h>
#include <c10/util/SmallVector.h>

#include <memory>
#include <utility>
#include <vector>

#include "tape/tape.h"

namespace refrain::tape {

/// A replay pass: which operators to run, where each value comes from and where it goes. Made under the lock; run
/// without it, on what it owns.
class Pass {
 public:
  struct PlannedValue {
    Value* value = nullptr;  ///< retained
    c10::Storage bytes;
    std::shared_ptr<Offloaded> offloaded;  ///< where to fetch them when first needed
    int32_t uses = 0;                      ///< planned operators that still read it
    bool ours = false;                     ///< replayed here, so its bytes may be consumed
    bool target = false;
    bool locked = false;     ///< counts in `value->locks`
    bool unchecked = false;  ///< `hash` is of what recorded operators read, and not compared yet
    uint64_t hash = 0;
    uint32_t look = 0;     ///< number of the last walk over an operator's inputs that met it
    int32_t written = -1;  ///< position among what the operator that runs overwrites, or -1
  };

  explicit Pass(TapeLock& lock) : number_(++lock.tape().plan_number) {}

  void want(Value* value) { entry(value).target = true; }

  /// Finds the operators needed, in recorded order. @throws CheckpointError
  void close(TapeLock& lock);

  /// Keeps everything that the pass reads resident until it has run.
  void lock_inputs();

  /// Thrown when an input that was resident during planning is evicted.
  struct InputLeft {};

  /// @throws InputLeft unless `lock_inputs` was called; values recomputed by then stay resident.
  void run();

  /// Allows the pass to overwrite the bytes of `value`.
  void consume(const Value* value);

  static void fetch(PlannedValue& planned);

  const std::vector<PlannedValue>& values() const { return values_; }
  int64_t operators_run() const { return operators_run_; }

  /// Releases everything, bytes included. Needs the lock.
  void clear(TapeLock& lock);

 private:
  struct Step {
    Op* op;
    c10::SmallVector<int32_t, 4> inputs;
    c10::SmallVector<int32_t, 2> outputs;
  };
  /// Planned values that an operator overwrites, and the memory it writes.
  using Written = c10::SmallVector<std::pair<int32_t, c10::Storage>, 2>;

  // Locks the inputs late, so that a long pass's last inputs can be evicted until then.
  void lock_inputs(const Step& step);

  // Checks that inputs from outside are what forward read.
  void check_inputs(const Step& step);

  static void lock_bytes(PlannedValue& planned);
  static void unlock(TapeLock& lock, PlannedValue& planned);

  // Whether the current walk over inputs meets it for the first time.
  bool comes_first(PlannedValue& planned) const { return std::exchange(planned.look, look_) != look_; }

  void tell_replayed(const Op& op, const Written& written) const;

  void tell_dropped(const PlannedValue& planned) const;

  // Releases a value that nothing in this pass reads any more.
  static void let_go(PlannedValue& planned);

  PlannedValue& entry(Value* value);

  void add_input(const Op& op, const ArgRef& ref, std::vector<int32_t>& todo);

  void run_step(Step& step);

  static c10::IValue list_of(const Op& op, size_t arg, std::vector<at::Tensor>&& tensors);

  // Fills lists without a defined element: they have no reference of their own.
  static void fill_empty_lists(const Op& op, torch::jit::Stack& stack);

  // Chooses the memory in which the operator overwrites this value: the value's own if this pass made it and no slot
  // wants it, else a copy. No later operator reads the old value: those recorded after the write read the new one.
  void writable(int32_t index, Written& written);

  at::Tensor tensor_of(const Step& step, size_t i, const Written& written,
                       c10::SmallVectorImpl<c10::Storage>& storages);

  static void run_kernel(const Op& op, torch::jit::Stack& stack);

  void collect(const Step& step, const torch::jit::Stack& stack, const c10::SmallVectorImpl<c10::Storage>& storages);

  // Makes an evicted value resident for all, not for this pass only: backward, which goes the other way, will read it
  // soon.
  static void put_in_place(PlannedValue& planned);

  const uint64_t number_;
  int64_t operators_run_ = 0;
  uint32_t look_ = 0;
  std::vector<PlannedValue> values_;
  std::vector<Op*> ops_;
  std::vector<Step> steps_;
};

}  // namespace refrain::tape
