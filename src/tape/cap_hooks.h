#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>
#include <c10/core/Storage.h>
#include <c10/util/SmallVector.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace refrain::tape {

class Arguments;
class TapeLock;
struct Op;
struct OpTraits;
struct Value;

/// Values that an operator under a cap reads and writes: locked while it runs, so that they stay resident.
struct Operands {
  const OpTraits* outer = nullptr;  ///< the operator that ran on this thread before
  bool is_begun = false;
  c10::SmallVector<Value*, 6> values;       ///< owned, locked
  c10::SmallVector<Value*, 2> overwritten;  ///< among `values`
  std::vector<Value*> missing;              ///< owned
  std::vector<Value*> written;              ///< among `values`: parameters that evicted values are computed from
  Operands() noexcept {}                    // not `= default`, which would zero all of it first
};

/// What a `MemoryCap` adds to recording, to replay and to the engine. The one interface between the tape and the code
/// that evicts, traces or plans; evict/ implements it, and forwards to the `StepListener` of the thread.
class CapHooks {
 public:
  // An operator: `before`, `begin`, `materialize` unless `begin` says it is ready, the run, `recorded` if the tape has
  // it, `end`.

  /// Called without the lock; may run operators and evict.
  virtual void before(const OpTraits& op, const torch::jit::Stack& stack) = 0;
  /// Notes in `arguments` the values that the tape knows. @return whether all operands are resident and there is no
  /// listener.
  virtual bool begin(TapeLock& lock, const OpTraits& op, Arguments& arguments, Operands& operands) = 0;
  /// Recomputes the operands, and evicted values computed from a source that the operator is about to overwrite.
  /// Without the lock.
  virtual void materialize(Operands& operands) = 0;
  /// Called after `materialize`.
  virtual void begun(TapeLock& lock, const OpTraits& op, const Operands& operands) = 0;
  virtual void recorded(TapeLock& lock, Op& op) = 0;
  /// The operator made `value`.
  virtual void made(TapeLock& lock, Value* value) = 0;
  /// The operator has run.
  virtual void ended(TapeLock& lock) = 0;
  /// Ends the locks on the operands, also where the operator threw.
  virtual void release(TapeLock& lock, Operands& operands) = 0;
  /// The operator ended; the one around it on this thread goes on.
  virtual void left(const Operands& operands) noexcept = 0;

  /// The storage of an evicted value died.
  virtual void evicted_died(TapeLock& lock, Value* value) = 0;
  /// Recomputes evicted values computed from `source`, which is about to be overwritten by something that is no
  /// operator. Without the lock; the caller owns `source`. @throws what a replay pass throws.
  virtual void materialize_dependents(Value* source) = 0;
  /// Pins `tensor`'s bytes, after recomputing them if needed. @param by  1, or -1 to undo.
  virtual void pin(const at::Tensor& tensor, int by) = 0;

  /// A backward has accumulated the gradient of `parameter`.
  virtual void accumulated(const at::Tensor& parameter) = 0;
  /// A `StepListener` is about to be set: from now on operators are recorded. No lock is held.
  virtual void wake() = 0;
  /// One was set.
  virtual void listening() = 0;
  /// The outermost backward of this thread has ended, and with it a step. No lock is held.
  virtual void step_ended() = 0;

  /// A replay pass is about to begin. Without the lock. If it throws, the pass does not run.
  virtual void before_pass() = 0;
  /// An operator is about to be replayed, without the lock.
  virtual void before_replay() = 0;
  /// Gives the storage of an evicted value its bytes. `bytes` must have no other owner; it names the storage
  /// afterwards.
  /// @return false if the storage is gone.
  virtual bool put_back(TapeLock& lock, Value* value, c10::Storage& bytes) = 0;
  /// @param operators  that the pass ran. @param demand  bytes: under a limit this large it would not have been needed.
  virtual void pass_ended(TapeLock& lock, int64_t ns, int64_t operators, int64_t demand) = 0;

 protected:
  ~CapHooks() = default;
};

}  // namespace refrain::tape
