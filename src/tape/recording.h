#pragma once

#include <ATen/core/stack.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/util/SmallVector.h>

#include <exception>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "intercept/ambient.h"
#include "intercept/op_traits.h"
#include "intercept/pointer_index.h"
#include "tape/arguments.h"
#include "tape/barrier_pause.h"
#include "tape/below.h"
#include "tape/draws.h"
#include "tape/thread_state.h"
#include "tape/written.h"

namespace refrain::tape {

/// Records one call of an operator: `prepare`, `read_arguments`, `run`, `note_results`.
class Recording {
 public:
  Recording(const OpTraits& traits, c10::DispatchKeySet keys, torch::jit::Stack* stack, const Arguments& arguments,
            ThreadState& thread, Region* region)
      : traits_(traits), keys_(keys), stack_(stack), arguments_(arguments), thread_(thread), region_(region) {}

  ~Recording();

  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  // Does what needs operators or allocations, before the lock.
  void prepare();

  void read_arguments(TapeLock& lock);

  void run(Below below);

  void note_results(TapeLock& lock);

  // Call it after `note_results`. @throws what the region's policy threw.
  void rethrow_failure();

 private:
  struct RecordedWrite : Write {
    bool scratch = true;    ///< no argument that names it feeds its old bytes into the result
    bool once = false;      ///< an effect that a replay does not repeat: the new version cannot be replayed
    bool produces = false;  ///< the new version is an output of the recorded op
    bool copy_wanted = false;
    int32_t ref = -1;  ///< an argument that names the storage
    c10::VariableVersion counter;
    RecordedWrite() noexcept {}
  };

  // Keeps a value alive until its operator refers to it.
  Value* stay(Value* value);

  // Copies borrowed memory: its owner may free or refill it unseen.
  void copy_borrowed(const at::Tensor& tensor);

  // See `set_check_inputs`.
  void check_input(const at::Tensor& tensor);

  void read_constants();

  void add_argument(TapeLock& lock, const Argument& argument);

  // Adds a tensor inside a kept one: a change to it would change the kept tensor unseen.
  void add_inside(const at::Tensor& tensor);

  // Counts, in `plan_index` of each value with the returned mark, how often the operator reads it.
  uint64_t count_own_refs(TapeLock& lock);

  static void remember_version(ArgRef& ref, const at::Tensor& tensor);

  void refer(TapeLock& lock, ArgRef& ref, Value* value, const at::Tensor& tensor);

  void read_generator(std::optional<DrawScope>& draw);

  Value* new_value(TapeLock& lock, const c10::VariableVersion& counter, const c10::Storage& storage);

  void produce(Value* value, OutRef out);

  size_t find_offloaded(const c10::StorageImpl* storage);

  // Offloads the results; those that the store declines are kept.
  void offload_results();

  void note_write_result(TapeLock& lock, RecordedWrite& write);

  void note_output(TapeLock& lock, const at::Tensor& tensor, int16_t ret, int32_t element);

  const OpTraits& traits_;
  const c10::DispatchKeySet keys_;
  torch::jit::Stack* const stack_;
  const Arguments& arguments_;
  ThreadState& thread_;
  Region* const region_;
  Op* op_ = nullptr;
  Writes<RecordedWrite, 1> writes_;
  PointerIndex argument_index_;
  c10::SmallVector<at::Tensor, 1> kept_;
  size_t next_kept_ = 0;
  std::vector<Value*> from_outside_;  ///< owned until `op_` refers to them
  bool saved_ = false;                ///< the region's policy keeps the results
  std::vector<std::pair<c10::StorageImpl*, std::shared_ptr<Offloaded>>> offloaded_;
  PointerIndex offloaded_index_;
  BarrierPause pause_;
  Ambient ambient_;
  std::exception_ptr failure_;
};

/// Exempts tensors inside one without a plain storage from eviction: operators reach them unseen.
void fix_inside(TapeLock& lock, const at::Tensor& tensor);

}  // namespace refrain::tape
