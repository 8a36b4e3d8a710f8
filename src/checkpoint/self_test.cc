#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/enum_tag.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/version.h>

#include <functional>
#include <utility>

#include "intercept/key.h"
#include "refrain/checkpoint.h"
#include "refrain/error.h"
#include "tape/registration.h"
#include "tape/thread_state.h"

namespace refrain {
namespace {

struct Fact {
  const char* what;
  std::function<bool()> holds;
};

at::Tensor grad_input(int64_t n) { return at::arange(1, n + 1, at::kFloat).set_requires_grad(true); }

void backward(const at::Tensor& root) {
  torch::autograd::Engine::get_default_engine().execute({torch::autograd::impl::gradient_edge(root)},
                                                        {at::ones_like(root)}, false, false, true);
}

int64_t recorded() { return tape_stats().recorded_ops; }

// In the order in which the tape depends on them: the first that fails names the cause.
const Fact kFacts[] = {
    {"the dispatch key Fake lies below autograd and above the backends",
     [] {
       return tape::kTapeKey < c10::DispatchKey::ADInplaceOrView && tape::kTapeKey < c10::DispatchKey::Functionalize &&
              tape::kTapeKey < c10::DispatchKey::Conjugate && tape::kTapeKey > c10::DispatchKey::BackendSelect;
     }},
    {"no operator has a kernel on the key Fake but the tape's",
     [] {
       const auto name = tape::operator_out_of_sight();
       if (!name.empty())
         throw EnvironmentError("`" + name + "` has; load the library that registered it before Refrain");
       return true;
     }},
    {"a kernel on the key Fake sees operators, and each once",
     [] {
       const auto x = grad_input(3);
       const auto before = recorded();
       const auto y = checkpoint([&] { return x.exp().sin(); });
       return recorded() == before + 2;
     }},
    {"the autograd engine asks its subclass for the default saved-tensor hook",
     [] {
       const auto x = grad_input(3);
       const auto before = tape_stats().live_slots;
       const auto y = checkpoint([&] { return x.exp().sin(); });
       return tape_stats().live_slots == before + 2;
     }},
    {"backward unpacks a hook's tensor and gives the right gradient",
     [] {
       const auto x = grad_input(3);
       backward(checkpoint([&] { return (x * x).exp().sum(); }));
       const auto plain = grad_input(3);
       backward((plain * plain).exp().sum());
       return at::equal(x.grad(), plain.grad());
     }},
    {"version counters are counted handles that in-place operators bump, shared by views",
     [] {
       const auto x = at::ones({4});
       const auto counter = x.unsafeGetTensorImpl()->version_counter();
       const auto before = counter.current_version();
       x.narrow(0, 0, 2).add_(1);
       return counter.current_version() == before + 1;
     }},
    {"callbacks queued during a graph task run when it ends",
     [] {
       bool inside = false, after = false;
       const auto x = grad_input(3);
       x.register_hook([&](const at::Tensor& grad) {
         inside = torch::autograd::get_current_graph_task_id() >= 0;
         torch::autograd::Engine::get_default_engine().queue_callback([&] { after = true; });
         return grad;
       });
       backward(x.sum());
       return inside && after && torch::autograd::get_current_graph_task_id() == -1;
     }},
    {"a random operator carries its tag, and its generator's state can be set and restored",
     [] {
       const auto x = grad_input(64);
       const auto y = checkpoint([&] { return std::get<0>(at::native_dropout(x * 2, 0.5, true)).sin().exp().sum(); });
       const auto state = at::globalContext().defaultGenerator(at::kCPU).get_state();
       backward(y);
       const auto replayed = x.grad().clone();
       const bool put_back = at::equal(state, at::globalContext().defaultGenerator(at::kCPU).get_state());
       const auto& native_dropout = c10::Dispatcher::singleton().findSchemaOrThrow("aten::native_dropout", "");
       return put_back && native_dropout.hasTag(at::Tag::nondeterministic_seeded) &&
              replayed.count_nonzero().item<int64_t>() > 0;
     }},
};

/// Settings under which the facts are tested, whatever this thread is doing.
struct Plainly {
  at::AutoGradMode grad_mode{true};
  bool enabled = set_checkpointing_enabled(true);
  int disabled = std::exchange(tape::ThreadState::get().disabled, 0);
  ~Plainly() {
    tape::ThreadState::get().disabled = disabled;
    set_checkpointing_enabled(enabled);
  }
};

}  // namespace

void self_test() {
  const Plainly plainly;
  for (const auto& fact : kFacts) {
    std::string why;
    bool holds = false;
    try {
      holds = fact.holds();
    } catch (const std::exception& error) {
      why = std::string(" (") + error.what() + ")";
    }
    if (!holds)
      throw EnvironmentError(std::string("[refrain::self_test] LibTorch ") + TORCH_VERSION +
                             " no longer does what the tape needs: " + fact.what + why +
                             ". Use a LibTorch from 2.11 to 2.14, or report this version.");
  }
}

}  // namespace refrain
