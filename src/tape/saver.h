#pragma once

#include <cstddef>
#include <memory>

#include "intercept/saved_hooks.h"

namespace torch::autograd {
struct SavedVariableHooks;
}

namespace refrain::tape {

/// Gives autograd an object to keep instead of a tensor, while it is this thread's innermost saver.
class Saver {
 public:
  Saver() : hook_depth(saved_hook_depth()) {}
  virtual std::unique_ptr<torch::autograd::SavedVariableHooks> hooks() = 0;
  /// Whether regions inside are rerun with the function, rather than replayed.
  virtual bool is_rerun() const { return false; }

  size_t hook_depth;  ///< `saved_hook_depth` when it was made: hooks set later override it

 protected:
  ~Saver() = default;
};

}  // namespace refrain::tape
