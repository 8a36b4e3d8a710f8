#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/input_buffer.h>

#include "tests/tape/support.h"

/// The library among other engines: one that ran before it, one that was there before it, ones installed after it.
namespace refrain_test {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::edge_list;
using torch::autograd::Engine;
using torch::autograd::variable_list;

/// Hands everything on; counts, and can keep what autograd saves.
class ForeignEngine final : public Engine {
 public:
  explicit ForeignEngine(Engine& inner) : inner_(inner) {}
  variable_list execute(const edge_list& roots, const variable_list& inputs, bool keep_graph, bool create_graph,
                        bool accumulate, const edge_list& outputs) override {
    ++runs;
    return inner_.execute(roots, inputs, keep_graph, create_graph, accumulate, outputs);
  }
  std::unique_ptr<torch::autograd::SavedVariableHooks> get_default_saved_variable_hooks() override {
    ++asked;
    return inner_.get_default_saved_variable_hooks();
  }
  int runs = 0, asked = 0;

 private:
  Engine& inner_;
};

ForeignEngine* current = nullptr;
Engine& current_engine() { return *current; }

/// Never destroyed, as engines are not.
ForeignEngine& put_on(Engine& inner) {
  static auto& all = *new std::vector<ForeignEngine*>;  // reachable, for the leak check
  current = all.emplace_back(new ForeignEngine(inner));
  torch::autograd::set_default_engine_stub(&current_engine);
  return *current;
}

ForeignEngine* first = nullptr;

/// Before anything of the library is used.
class BeforeAll final : public testing::Environment {
 public:
  void SetUp() override {
    torch::ones({4}).requires_grad_().exp().sum().backward();  // LibTorch's own engine has its threads from here on
    first = &put_on(Engine::get_default_engine());
  }
};
const auto* const before_all = testing::AddGlobalTestEnvironment(new BeforeAll);

/// A backward inside a backward, `depth` deep.
struct Nest : torch::autograd::Function<Nest> {
  static Tensor forward(AutogradContext* ctx, Tensor x, int64_t depth) {
    ctx->saved_data["depth"] = depth;
    return x * 2;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grad) {
    const auto depth = ctx->saved_data["depth"].toInt();
    if (depth > 0) {
      const at::AutoGradMode on(true);
      auto x = torch::ones({4}).requires_grad_();
      Nest::apply(x, depth - 1).sum().backward();
    }
    return {grad[0] * 2, Tensor()};
  }
};

Tensor nested(const Tensor& x) { return Nest::apply(x.sin(), 150).exp(); }

Tensor gradient_of(const std::function<Tensor(const Tensor&)>& f) {
  auto x = torch::ones({4}).requires_grad_();
  f(x).sum().backward();
  return x.grad();
}

// LibTorch hands a backward nested deeper than 60 to another thread, of the engine that made threads first.
TEST(Engine, NestedBackwardGoesDeeperThanOneThread) {
  const auto expected = gradient_of(nested);
  expect_bit_equal(expected, gradient_of([](const Tensor& x) { return refrain::checkpoint(&nested, x); }), "replay");
  const auto rerun = refrain::CheckpointOptions().recompute_mode(refrain::RecomputeMode::kRerunFunction);
  expect_bit_equal(expected, gradient_of([&](const Tensor& x) { return refrain::checkpoint(rerun, &nested, x); }),
                   "rerun");
  refrain::install_memory_tracking();
  {
    const refrain::MemoryCap cap(refrain::Bytes{1} << 30);
    expect_bit_equal(expected, gradient_of(nested), "cap");
  }
  const refrain::MemoryBudget budget(refrain::Budget::fraction(0.5));
  for (int step = 0; step < 3; ++step) expect_bit_equal(expected, gradient_of(nested), "budget");
}

TEST(Engine, TheEngineThatWasThereRunsEveryBackward) {
  const int runs = first->runs;
  gradient_of([](const Tensor& x) { return refrain::checkpoint([](Tensor t) { return t.exp().sin(); }, x); });
  gradient_of([](const Tensor& x) { return x.exp(); });
  EXPECT_EQ(first->runs, runs + 2);
}

Tensor two_saved(const Tensor& x) {
  return refrain::checkpoint([](Tensor t) { return t.exp().sin(); }, x);
}

int64_t slots_of_a_region() {
  const auto x = torch::ones({4}).requires_grad_();
  const auto before = refrain::tape_stats().live_slots;
  const auto y = two_saved(x);
  return refrain::tape_stats().live_slots - before;
}

TEST(Engine, OneInstalledLaterThatHandsOnIsLeftInFront) {
  const auto expected = gradient_of(two_saved);
  auto& later = put_on(Engine::get_default_engine());
  EXPECT_EQ(slots_of_a_region(), 2);
  expect_bit_equal(expected, gradient_of(two_saved));
  EXPECT_EQ(&Engine::get_default_engine(), &later);
  EXPECT_EQ(later.runs, 1);
  // once a step, not once an engine
  refrain::install_memory_tracking();
  refrain::MemoryBudget budget(refrain::Budget::fraction(0.5));
  for (int step = 0; step < 3; ++step) gradient_of([](const Tensor& x) { return x.exp().sin(); });
  EXPECT_EQ(budget.stats().traced_steps, 1);
  EXPECT_EQ(budget.stats().planned_steps, 2);
}

TEST(Engine, OneInstalledLaterThatKnowsNothingOfUsIsWrapped) {
  const auto expected = gradient_of(two_saved);
  auto& later = put_on(Engine::get_base_engine());  // as a module of Python does when it is imported
  EXPECT_EQ(slots_of_a_region(), 2);
  expect_bit_equal(expected, gradient_of(two_saved));
  EXPECT_NE(&Engine::get_default_engine(), &later);
  EXPECT_EQ(later.runs, 1);
  const auto asked = later.asked;
  gradient_of([](const Tensor& x) { return x.exp(); });
  EXPECT_GT(later.asked, asked) << "its own hooks are asked for outside of regions";
}

TEST(Engine, ABackwardOfAnotherEngineIsAStepIfItSaysSo) {
  refrain::install_memory_tracking();
  refrain::MemoryBudget budget(refrain::Budget::fraction(0.5));
  for (int step = 0; step < 3; ++step) {
    auto x = torch::ones({64, 64}).requires_grad_();
    const auto y = x.exp().sin().sum();
    refrain::BackwardRun run({y});
    Engine::get_base_engine().execute({torch::autograd::impl::gradient_edge(y)}, {torch::ones({})}, false, false, true);
    run.end();
  }
  EXPECT_EQ(budget.stats().traced_steps, 1);
  EXPECT_EQ(budget.stats().planned_steps, 2);
}

}  // namespace
}  // namespace refrain_test
