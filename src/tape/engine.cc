#include "tape/engine.h"

#include <ATen/ops/ones.h>
#include <ATen/ops/sum.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/input_buffer.h>
#include <torch/csrc/autograd/variable.h>

#include <atomic>
#include <mutex>
#include <typeinfo>

#include "intercept/graph_leaves.h"
#include "intercept/key.h"
#include "intercept/saved_hooks.h"
#include "refrain/backward.h"
#include "tape/cap.h"
#include "tape/registration.h"
#include "tape/thread_state.h"

namespace refrain::tape {
namespace {

using torch::autograd::edge_list;
using torch::autograd::variable_list;

/// Reports new gradients to the cap; forwards to the hook that was set before.
class GradientHook final : public torch::autograd::PostAccumulateGradHook {
 public:
  explicit GradientHook(std::unique_ptr<PostAccumulateGradHook> next) : next_(std::move(next)) {}
  void operator()(const at::Tensor& parameter) override {
    cap_hooks().accumulated(parameter);
    if (next_) (*next_)(parameter);
  }

 private:
  std::unique_ptr<PostAccumulateGradHook> next_;
};

void hook_gradients(const edge_list& roots) {
  for (const auto& leaf : graph_leaves(roots)) {
    auto& hook = torch::autograd::impl::post_acc_grad_hooks(leaf);
    const auto* known = hook.get();
    if (!known || typeid(*known) != typeid(GradientHook)) hook = std::make_unique<GradientHook>(std::move(hook));
  }
}

// What holds a node differs between versions of LibTorch.
template <typename Result, typename Task, typename Root, typename Input>
Root root_of(Result (torch::autograd::Engine::*)(Task, Root, Input));
using NodePointer = decltype(root_of(&torch::autograd::Engine::execute_with_graph_task));

/// Wraps the engine that was the default, with its threads, queues and hooks, and lets the open region keep what
/// autograd wants to save. A second engine that ran graphs itself would lack the first one's threads.
class TapeEngine final : public torch::autograd::Engine {
 public:
  explicit TapeEngine(Engine& inner) : inner_(inner) {}

  variable_list execute(const edge_list& roots, const variable_list& inputs, bool keep_graph, bool create_graph,
                        bool accumulate_grad, const edge_list& outputs) override {
    EngineRun run(roots, accumulate_grad);
    auto gradients = inner_.execute(roots, inputs, keep_graph, create_graph, accumulate_grad, outputs);
    run.end();
    return gradients;
  }

  c10::intrusive_ptr<at::ivalue::Future> execute_with_graph_task(
      const std::shared_ptr<torch::autograd::GraphTask>& task, NodePointer root,
      torch::autograd::InputBuffer&& input) override {
    return inner_.execute_with_graph_task(task, std::move(root), std::move(input));
  }

  std::unique_ptr<torch::autograd::AnomalyMetadata> make_anomaly_metadata() override {
    return inner_.make_anomaly_metadata();
  }

  std::unique_ptr<torch::autograd::SavedVariableHooks> get_default_saved_variable_hooks() override {
    auto& thread = ThreadState::get();
    if (thread.engine_probe) {
      *thread.engine_probe = true;
      return nullptr;
    }
    // hooks around a part of the region's function count for that part
    const size_t depth = saved_hook_depth();
    const size_t ours = thread.saver ? thread.saver->hook_depth : thread.region ? thread.region->hook_depth : 0;
    if (depth > ours)
      if (auto hooks = inner_.get_default_saved_variable_hooks()) return hooks;
    if (thread.saver) return thread.saver->hooks();
    const auto saved_hooks = Tape::get().saved_hooks.load(std::memory_order_relaxed);
    if (thread.region) return saved_hooks(thread.region);
    if (thread.observer) return thread.observer->hooks();
    if (auto hooks = inner_.get_default_saved_variable_hooks()) return hooks;
    if (Tape::get().discardable.load(std::memory_order_relaxed) > 0) return saved_hooks(nullptr);
    return nullptr;
  }

 private:
  Engine& inner_;
};

// Never destroyed, nor are those before it: device threads use engines until the process ends.
std::atomic<TapeEngine*> newest{nullptr};
/// The default engine when it was last found to lead to the tape: `newest`, or another library's that wraps it.
std::atomic<const torch::autograd::Engine*> leading{nullptr};

torch::autograd::Engine& tape_engine() { return *newest.load(std::memory_order_acquire); }

bool leads_here(torch::autograd::Engine& engine) {
  auto& thread = ThreadState::get();
  bool found = false;
  auto* const before = std::exchange(thread.engine_probe, &found);
  try {
    (void)engine.get_default_saved_variable_hooks();
  } catch (...) {
    thread.engine_probe = before;
    throw;
  }
  thread.engine_probe = before;
  return found;
}

void install_over(torch::autograd::Engine& engine) {
  static std::mutex mutex;
  std::lock_guard lock(mutex);
  if (&engine == leading.load() || leads_here(engine)) return leading.store(&engine);
  newest.store(new TapeEngine(engine), std::memory_order_release);
  torch::autograd::set_default_engine_stub(&tape_engine);
  leading.store(newest.load());
}

// After an exception the ready queue keeps its remaining tasks, with tensors, until the next backward.
void drain() noexcept {
  try {
    const UnseenScope unseen;  // no part of a step
    const at::AutoGradMode grad_mode(true);
    const auto x = at::ones({1}).set_requires_grad(true);
    const auto root = torch::autograd::impl::gradient_edge(x.sum());
    torch::autograd::Engine::get_default_engine().execute({root}, {at::ones({})}, false, false, true, {});
  } catch (...) {
    // no memory even for that: the next backward does it
  }
}

}  // namespace

void install() {
  auto& engine = torch::autograd::Engine::get_default_engine();
  if (&engine != leading.load(std::memory_order_relaxed)) install_over(engine);
  require_key();
}

EngineRun::EngineRun(const edge_list& roots, bool accumulates)
    : has_cap_(is_cap_open()),
      is_outermost_(torch::autograd::get_current_graph_task_id() < 0 && ThreadState::get().engine_runs == 0) {
  if (is_capped() && accumulates) hook_gradients(roots);
  ++ThreadState::get().engine_runs;
}

EngineRun::~EngineRun() {
  if (has_ended_) return;
  if (has_cap_ && is_outermost_) drain();  // while this one counts, so that it ends no step
  --ThreadState::get().engine_runs;
}

void EngineRun::end() {
  has_ended_ = true;
  --ThreadState::get().engine_runs;
  if (!has_cap_ || !is_outermost_) return;
  cap_hooks().step_ended();
}

}  // namespace refrain::tape

namespace refrain {

struct BackwardRun::State {
  tape::EngineRun run;
};

BackwardRun::BackwardRun(const std::vector<at::Tensor>& roots, bool accumulates) {
  tape::install();
  torch::autograd::edge_list edges;
  for (const auto& root : roots)
    if (root.defined() && root.requires_grad()) edges.push_back(torch::autograd::impl::gradient_edge(root));
  state_ = std::unique_ptr<State>(new State{{edges, accumulates}});
}

BackwardRun::~BackwardRun() = default;

void BackwardRun::end() {
  if (const auto state = std::move(state_)) state->run.end();
}

}  // namespace refrain
