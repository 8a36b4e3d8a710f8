#include "intercept/after_backward.h"

#include <torch/csrc/autograd/engine.h>

namespace refrain::tape {

void after_backward(std::function<void()> fn) {
  torch::autograd::Engine::get_default_engine().queue_callback(std::move(fn));
}

}  // namespace refrain::tape
