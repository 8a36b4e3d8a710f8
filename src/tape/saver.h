#pragma once

#include <cstddef>
#include <memory>

#include "intercept/saved_hooks.h"

namespace torch::autograd {
struct SavedVariableHooks;
}

namespace refrain::tape {

/// Gives autograd something to keep instead of a tensor, while it is this thread's innermost.
class Saver {
 public:
  Saver() : hook_depth(saved_hook_depth()) {}
  virtual std::unique_ptr<torch::autograd::SavedVariableHooks> hooks() = 0;
  /// Whether regions inside are called again with the function, rather than replayed.
  virtual bool is_rerun() const { return false; }

  size_t hook_depth;  ///< `saved_hook_depth` when it was made: hooks put on later go first

 protected:
  ~Saver() = default;
};

}  // namespace refrain::tape
