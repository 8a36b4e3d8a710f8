#include <nlohmann/json.hpp>
#include <set>

#include "budget/step_state.h"
#include "graph/explain.h"
#include "models/zoo.h"
#include "plan/blocks.h"
#include "refrain/explain_plan.h"
#include "refrain/memory_budget.h"
#include "refrain/nn.h"
#include "refrain/sequential.h"
#include "tests/tape/support.h"
#include "trace/step_tracer.h"

/// Operators of a traced step say in which module they ran, or that of the operator whose gradient they compute.
namespace refrain_test {
namespace {

using refrain::ModuleScope;
using torch::nn::Linear;
using Names = std::vector<std::string>;

const refrain::graph::Graph& graph_of(const refrain::StepTrace& trace) { return trace.state().graph; }

/// Scopes of operators of forward, or of backward, in order, each once in a row. The gradient of a loss is made before
/// backward.
Names scopes_of(const refrain::StepTrace& trace, bool backward) {
  Names names;
  for (const auto& op : graph_of(trace).ops)
    if (op.name != refrain::tape::StepTracer::kEnd && op.backward == backward &&
        (names.empty() || names.back() != op.scope))
      names.push_back(op.scope);
  return names;
}

Names reversed(Names names) { return {names.rbegin(), names.rend()}; }

TEST(PlanExplanation, SaysWhatAPlanDoesInEachModule) {
  std::vector<Linear> layers;
  for (int i = 0; i < 6; ++i) layers.emplace_back(32, 32);
  const auto step = [&] {
    auto y = torch::randn({256, 32});
    for (size_t i = 0; i < layers.size(); ++i) {
      const ModuleScope scope("layer" + std::to_string(i));
      y = layers[i]->forward(y).tanh();
    }
    y.sum().backward();
  };
  step();
  const auto trace = refrain::profile(step);
  const auto plan = refrain::plan_step(trace, refrain::Budget::fraction(0.2));
  const auto of_plan = nlohmann::json::parse(refrain::explain(plan, 2).json);
  EXPECT_EQ(of_plan["kind"], "explain_plan");
  EXPECT_EQ(of_plan["peak_bytes"], plan.peak());
  EXPECT_EQ(of_plan["plain_peak_bytes"], trace.peak());
  EXPECT_EQ(of_plan["holders"].size(), 2);
  EXPECT_GT(of_plan["recomputed_ops"], 0);
  EXPECT_NE(refrain::explain(plan).text.find("layer1"), std::string::npos);
  const auto of_trace = nlohmann::json::parse(refrain::explain(trace).json);
  EXPECT_EQ(of_trace["peak_bytes"], trace.peak());
  EXPECT_EQ(of_trace["recomputed_ops"], 0);
}

TEST(TraceScopes, BackwardHasThoseOfItsForward) {
  Linear first(16, 16), second(16, 16);
  const auto x = torch::randn({4, 16});
  const auto step = [&] {
    auto y = x;
    {
      const ModuleScope scope("encoder");
      const ModuleScope inner("mlp");
      y = first->forward(y).tanh();
    }
    {
      const ModuleScope scope("head");
      // a view is no operator of the trace, but what autograd notes of it has a number as well
      y = second->forward(y.view({2, 2, 16})).tanh().transpose(0, 1);
    }
    y.sum().backward();
  };
  const auto trace = refrain::profile(step);
  EXPECT_EQ(scopes_of(trace, false), (Names{"encoder.mlp", "head", ""}));
  EXPECT_EQ(scopes_of(trace, true), (Names{"head", "encoder.mlp"}));
  EXPECT_EQ(graph_of(trace).ops.back().scope, "");

  // gradients are there now, and added to: that is the module's whose weight it is
  const auto again = refrain::profile(step);
  Names adds;
  for (const auto& op : graph_of(again).ops)
    if (op.backward && op.name.starts_with("aten::add")) adds.push_back(op.scope);
  EXPECT_EQ(adds, (Names{"head", "head", "encoder.mlp", "encoder.mlp"}));
}

TEST(TraceScopes, AScopeThatWasOpenBeforeIsAround) {
  Linear layer(16, 16);
  const auto x = torch::randn({4, 16});
  std::optional<ModuleScope> outer(std::in_place, "model");
  const auto trace = refrain::profile([&] {
    torch::Tensor y;
    {
      const ModuleScope scope("layer");
      y = layer->forward(x);
    }
    y = y.tanh();
    outer.reset();
    y.sum().backward();
  });
  EXPECT_EQ(scopes_of(trace, false), (Names{"model.layer", "model", ""}));
  EXPECT_EQ(scopes_of(trace, true), (Names{"model", "model.layer"}));
}

struct BlockImpl : torch::nn::Module {
  BlockImpl() {
    register_module("up", up);
    register_module("down", down);
  }
  Tensor forward(const Tensor& x) {
    auto y = refrain::call(up, x).tanh();
    const ModuleScope scope("out");
    return refrain::call(down, y);
  }
  Linear up{16, 16}, down{16, 16};
};
TORCH_MODULE(Block);

struct NetImpl : torch::nn::Module {
  NetImpl() {
    register_module("blocks", blocks);
    for (int i = 0; i < 2; ++i) blocks->push_back(Block());
  }
  Tensor forward(Tensor x) {
    for (size_t i = 0; i < blocks->size(); ++i) x = refrain::call(blocks->ptr<BlockImpl>(i), x);
    return x;
  }
  torch::nn::ModuleList blocks;
};
TORCH_MODULE(Net);

template <typename F>
refrain::StepTrace traced(F&& forward) {
  return refrain::profile([&] { forward(torch::randn({4, 16})).sum().backward(); });
}

TEST(TraceScopes, MarkedModulesHaveTheirNames) {
  Net net;
  const auto forward = [&](const Tensor& x) { return net->forward(x); };
  EXPECT_EQ(scopes_of(traced(forward), false), (Names{"", "out", "", "out", ""}));
  refrain::apply_checkpointing(net, refrain::is_module<Block>());
  const Names blocks{"", "blocks.0", "blocks.0.out", "blocks.1", "blocks.1.out", ""};
  EXPECT_EQ(scopes_of(traced(forward), false), blocks);
  refrain::disable_checkpointing(net);
  EXPECT_EQ(scopes_of(traced(forward), false), blocks);
  EXPECT_EQ(scopes_of(traced(forward), true), (Names{"blocks.1.out", "blocks.1", "blocks.0.out", "blocks.0"}));
  // not said twice
  refrain::apply_checkpointing(net, refrain::is_module<Block, Linear>());
  refrain::disable_checkpointing(net);
  const ModuleScope outer("net");
  EXPECT_EQ(scopes_of(traced(forward), false),
            (Names{"net", "net.blocks.0.up", "net.blocks.0", "net.blocks.0.out.blocks.0.down", "net.blocks.1.up",
                   "net.blocks.1", "net.blocks.1.out.blocks.1.down", "net"}));
  refrain::remove_checkpointing(net);
}

TEST(TraceScopes, ACheckpointHasItsClassAndANumberOfItsOwn) {
  refrain::nn::Checkpoint<Block> first, second;
  const auto forward = [&](const Tensor& x) { return first->forward(second->forward(first->forward(x))); };
  const auto names = scopes_of(traced(forward), false);
  ASSERT_EQ(names.size(), 8U);
  EXPECT_TRUE(names[1].starts_with("Block.")) << names[1];
  EXPECT_EQ(names[2], names[1] + ".out");
  EXPECT_NE(names[3], names[1]);
  EXPECT_EQ(names[5], names[1]);
  EXPECT_EQ(scopes_of(traced(forward), false), names);
  first->disable();
  second->disable();
  EXPECT_EQ(scopes_of(traced(forward), false), names);
  EXPECT_EQ(scopes_of(traced(forward), true), reversed({names.begin() + 1, names.end() - 1}));
}

TEST(TraceScopes, SegmentsAreNumbered) {
  torch::nn::Sequential row(Linear(16, 16), Linear(16, 16), Linear(16, 16), Linear(16, 16));
  const auto trace = traced([&](const Tensor& x) { return refrain::checkpoint_sequential(row, 2, x); });
  EXPECT_EQ(scopes_of(trace, false), (Names{"", "segments.0", "segments.1", ""}));
}

TEST(TraceScopes, PoliciesSeeOnlyTheirOwn) {
  Net net;
  std::set<std::string> seen;
  const refrain::Policy policy = [&](const refrain::OpContext& op) {
    seen.emplace(op.scope());
    return refrain::CheckpointPolicy::kPreferRecompute;
  };
  refrain::apply_checkpointing(net, refrain::is_module<Block>(), refrain::CheckpointOptions().policy(policy));
  traced([&](const Tensor& x) { return net->forward(x); });
  EXPECT_EQ(seen, (std::set<std::string>{"", "out"}));
  refrain::remove_checkpointing(net);
}

struct Case {
  const char* model;
  refrain::models::ModelOptions sizes;
  size_t blocks;
  bool saves_in_blocks = true;  ///< one layer is all that it saves
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.model; }

class ZooScopes : public testing::TestWithParam<Case> {};

TEST_P(ZooScopes, StepsHaveBlocksForPlannersAndReaders) {
  const auto model = refrain::models::make_model(GetParam().model, GetParam().sizes);
  const auto batch = model->synthetic_batch(1);
  const auto trace = refrain::profile([&] {
    for (auto& parameter : model->module().parameters()) parameter.mutable_grad().reset();
    model->loss(batch).backward();
  });
  const auto& graph = graph_of(trace);
  EXPECT_EQ(refrain::plan::blocks_by_scope(refrain::plan::Problem(graph)).size(), GetParam().blocks);

  // what a loss makes is in no module
  std::set<std::string> forward, backward;
  int64_t bytes = 0, named = 0;
  for (const auto& op : graph.ops) {
    (op.backward ? backward : forward).insert(op.scope);
    for (const auto id : op.outputs) {
      const auto made = graph.values[static_cast<size_t>(id)].bytes;
      bytes += made;
      if (!op.scope.empty()) named += made;
    }
  }
  EXPECT_GT(named, bytes * 3 / 4);
  for (const auto& scope : backward) EXPECT_TRUE(forward.contains(scope)) << scope;

  refrain::plan::PlanOptions options;
  options.solver = refrain::plan::Solver::kPerBlock;
  options.bound = false;
  const auto plan = refrain::plan::plan(graph, refrain::plan::Budget::of_fraction(0.5), options);
  if (!GetParam().saves_in_blocks) return;
  EXPECT_LT(plan.peak, plan.plain_peak);
  const auto explanation = refrain::graph::explain(graph, plan.schedule);
  const auto is_named = [](const auto& scope) { return !scope.scope.empty(); };
  EXPECT_GE(std::count_if(explanation.scopes.begin(), explanation.scopes.end(), is_named), 2);
}

INSTANTIATE_TEST_SUITE_P(Zoo, ZooScopes,
                         testing::Values(Case{"mlp", {.batch = 2048, .depth = 5, .width = 32}, 5, false},
                                         Case{"gptsmall", {.batch = 8, .seq = 64, .depth = 3}, 3},
                                         Case{"blocks", {.batch = 8, .seq = 32, .depth = 3, .width = 32}, 3},
                                         Case{"resnet18", {.batch = 4, .image_size = 64}, 8},
                                         Case{"resnet50", {.batch = 2, .image_size = 64}, 16},
                                         Case{"unet", {.batch = 4, .image_size = 32, .width = 8}, 6},
                                         Case{"lstm", {.batch = 8, .seq = 64, .depth = 3, .width = 32}, 3},
                                         Case{"lstm-ragged", {.batch = 8, .seq = 12, .depth = 2, .width = 32}, 2},
                                         Case{"treelstm", {.batch = 4, .seq = 8, .width = 64}, 4},
                                         Case{"densenet121", {.batch = 2, .image_size = 32}, 58}),
                         [](const auto& instance) {
                           std::string name = instance.param.model;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace refrain_test
