#include "tape/install.h"

#include <ATen/ops/ones.h>
#include <ATen/ops/sum.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/variable.h>

#include <typeinfo>

#include "refrain/error.h"
#include "tape/evict.h"
#include "tape/graph_leaves.h"
#include "tape/key.h"
#include "tape/observer.h"
#include "tape/running.h"
#include "tape/step_listener.h"

namespace refrain::tape {
namespace {

/// Tells the cap what has become a gradient; hands on to the hook that was there.
class GradientHook final : public torch::autograd::PostAccumulateGradHook {
 public:
  explicit GradientHook(std::unique_ptr<PostAccumulateGradHook> next) : next_(std::move(next)) {}
  void operator()(const at::Tensor& parameter) override {
    note_gradient(parameter);
    if (next_) (*next_)(parameter);
  }

 private:
  std::unique_ptr<PostAccumulateGradHook> next_;
};

void hook_gradients(const torch::autograd::edge_list& roots) {
  for (const auto& leaf : graph_leaves(roots)) {
    auto& hook = torch::autograd::impl::post_acc_grad_hooks(leaf);
    const auto* known = hook.get();
    if (!known || typeid(*known) != typeid(GradientHook)) hook = std::make_unique<GradientHook>(std::move(hook));
  }
}

/// LibTorch's engine, which additionally lets the open region keep what autograd wants to save, and a watch see it run.
class TapeEngine final : public torch::autograd::Engine {
 public:
  torch::autograd::variable_list execute(const torch::autograd::edge_list& roots,
                                         const torch::autograd::variable_list& inputs, bool keep_graph,
                                         bool create_graph, bool accumulate_grad,
                                         const torch::autograd::edge_list& outputs) override {
    const BackwardScope backward;
    if (!Tape::get().cap.load(std::memory_order_relaxed))
      return Engine::execute(roots, inputs, keep_graph, create_graph, accumulate_grad, outputs);
    if (accumulate_grad) hook_gradients(roots);
    const bool outermost = torch::autograd::get_current_graph_task_id() < 0;
    try {
      auto gradients = Engine::execute(roots, inputs, keep_graph, create_graph, accumulate_grad, outputs);
      if (outermost) step_ended();
      return gradients;
    } catch (...) {
      if (outermost) drain();
      throw;
    }
  }

  std::unique_ptr<torch::autograd::SavedVariableHooks> get_default_saved_variable_hooks() override {
    auto& thread = ThreadState::get();
    if (thread.saver) return thread.saver->hooks();
    auto* region = thread.region;
    if (region) return std::make_unique<Slot>(region);
    if (thread.observer) return thread.observer->hooks();
    if (Tape::get().discardable.load(std::memory_order_relaxed) > 0) return std::make_unique<Slot>(nullptr);
    return nullptr;
  }

 private:
  static void step_ended() {
    if (auto* listener = step_listener()) listener->step_ended();
    end_step();
  }

  // After an exception the ready queue keeps what it had to do, with tensors, until the next backward.
  void drain() noexcept {
    try {
      const at::AutoGradMode grad_mode(true);
      const auto x = at::ones({1}).set_requires_grad(true);
      Engine::execute({torch::autograd::impl::gradient_edge(x.sum())}, {at::ones({})}, false, false, true, {});
    } catch (...) {
      // not even room for that: the next backward does it
    }
  }
};

// Never destroyed: device threads use it until the process ends.
torch::autograd::Engine& tape_engine() {
  static auto* engine = new TapeEngine;
  return *engine;
}

}  // namespace

void install() {
  static const bool done = [] {
    torch::autograd::set_default_engine_stub(&tape_engine);
    return true;
  }();
  (void)done;
  require_key();
}

}  // namespace refrain::tape

namespace refrain {

TapeStats tape_stats() {
  while (tape::has_gone()) const tape::TapeLock settling;
  tape::TapeLock lock;
  return lock.tape().stats;
}

void reset_tape_counters() {
  tape::TapeLock lock;
  auto& stats = lock.tape().stats;
  stats.recorded_ops = stats.replayed_ops = stats.refills = stats.reruns = stats.leaf_copies = 0;
  stats.recorded_ns = stats.replayed_forward_ns = stats.replay_ns = 0;
}

bool set_op_timing(bool on) { return tape::Tape::get().timing.exchange(on); }

LeafWritePolicy set_leaf_write_policy(LeafWritePolicy policy, int64_t max_leaf_copy_bytes) {
  if (max_leaf_copy_bytes < 0)
    throw InvalidArgument("[refrain::set_leaf_write_policy] max_leaf_copy_bytes is " +
                          std::to_string(max_leaf_copy_bytes) + ", expected a number of bytes >= 0.");
  tape::TapeLock lock;
  lock.tape().max_leaf_copy_bytes = max_leaf_copy_bytes;
  return std::exchange(lock.tape().leaf_write_policy, policy);
}

void register_effect_op(const std::string& op) {
  if (op.find("::") == std::string::npos)
    throw InvalidArgument("[refrain::register_effect_op] found `" + op +
                          "`, expected \"namespace::name\", for example \"aten::copy_\".");
  tape::mark_effect_op(op);
}

}  // namespace refrain
