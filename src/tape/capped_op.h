#pragma once

#include "tape/cap_hooks.h"
#include "tape/tape.h"

namespace refrain::tape {

/// An operator under a cap, on this thread.
class CappedOp {
 public:
  CappedOp(CapHooks& hooks, const OpTraits& op, const torch::jit::Stack& stack) : hooks_(hooks), op_(op) {
    hooks_.before(op, stack);
  }
  /// Ends the locks, if `end` has not.
  ~CappedOp() {
    if (!operands_.is_begun) return;
    hooks_.left(operands_);
    if (operands_.values.empty() && operands_.missing.empty()) return;
    TapeLock lock;
    hooks_.release(lock, operands_);
  }
  CappedOp(const CappedOp&) = delete;
  CappedOp& operator=(const CappedOp&) = delete;

  /// @return whether the operands are ready.
  bool begin(TapeLock& lock, Arguments& arguments) { return hooks_.begin(lock, op_, arguments, operands_); }
  void materialize() { hooks_.materialize(operands_); }
  void begun(TapeLock& lock) { hooks_.begun(lock, op_, operands_); }
  void end(TapeLock& lock) {
    hooks_.ended(lock);
    hooks_.release(lock, operands_);
  }

 private:
  CapHooks& hooks_;
  const OpTraits& op_;
  Operands operands_;
};

}  // namespace refrain::tape
