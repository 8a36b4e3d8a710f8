#include "refrain/breakdown.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "models/zoo.h"
#include "refrain/error.h"
#include "refrain/memory.h"

namespace refrain {
namespace {

using torch::optim::Adam;
using torch::optim::AdamOptions;

TEST(Breakdown, FixedCostByOptimizer) {
  torch::nn::Linear net(10, 5);
  net->bias.set_requires_grad(false);
  const Bytes weight = 200, all = 220;
  const auto states = [&](const torch::optim::Optimizer& optimizer) {
    const auto parts = estimate_fixed(*net, optimizer);
    EXPECT_EQ(parts.parameters, all);
    EXPECT_EQ(parts.gradients, weight);
    return parts.optimizer_states;
  };
  const std::vector<torch::Tensor> params{net->weight};
  EXPECT_EQ(states(Adam(params, AdamOptions(1e-3))), 2 * weight);
  EXPECT_EQ(states(Adam(params, AdamOptions(1e-3).amsgrad(true))), 3 * weight);
  EXPECT_EQ(states(torch::optim::AdamW(params)), 2 * weight);
  EXPECT_EQ(states(torch::optim::SGD(params, 0.1)), 0);
  EXPECT_EQ(states(torch::optim::SGD(params, torch::optim::SGDOptions(0.1).momentum(0.9))), weight);
  EXPECT_EQ(states(torch::optim::Adagrad(params)), weight);
  EXPECT_EQ(states(torch::optim::RMSprop(params, torch::optim::RMSpropOptions().momentum(0.9).centered(true))),
            3 * weight);
  EXPECT_THROW(states(torch::optim::LBFGS(params)), InvalidArgument);
}

TEST(Breakdown, EstimatedStatesAreThoseThatComeToBe) {
  install_memory_tracking();
  const auto check = [](auto make) {
    torch::nn::Linear net(10, 5);
    auto optimizer = make(net->parameters());
    MemoryTimeline timeline(*net, optimizer);
    net->forward(torch::ones({2, 10})).sum().backward();
    optimizer.step();
    const auto measured = measured_parts(timeline.stop());
    const auto estimated = estimate_fixed(*net, optimizer);
    EXPECT_EQ(measured.parameters, estimated.parameters);
    EXPECT_EQ(measured.gradients, estimated.gradients);
    EXPECT_EQ(measured.optimizer_states, estimated.optimizer_states);
  };
  using Params = std::vector<torch::Tensor>;
  check([](const Params& p) { return Adam(p, AdamOptions(1e-3).amsgrad(true)); });
  check([](const Params& p) { return torch::optim::SGD(p, torch::optim::SGDOptions(0.1).momentum(0.9)); });
  check([](const Params& p) { return torch::optim::Adagrad(p); });
  check([](const Params& p) {
    return torch::optim::RMSprop(p, torch::optim::RMSpropOptions().momentum(0.9).centered(true));
  });
}

/// The notebook, section 1.1: 1 MB is 2^20 bytes.
TEST(Breakdown, TheNotebooksNumbers) {
  auto model = models::make_model("mlp", {.batch = 4});
  Adam adam(model->module().parameters(), AdamOptions(1e-3));
  const auto fixed = estimate_fixed(model->module(), adam);
  EXPECT_EQ(fixed.parameters, 10'496'000 * 4);
  EXPECT_NEAR(static_cast<double>(fixed.parameters) / 1048576, 40.04, 0.005);
  EXPECT_NEAR(static_cast<double>(fixed.gradients) / 1048576, 40.04, 0.005);
  EXPECT_NEAR(static_cast<double>(fixed.optimizer_states) / 1048576, 80.08, 0.005);
  EXPECT_NEAR(static_cast<double>(fixed.fixed()) / 1048576, 160.16, 0.005);
  const auto batch = model->synthetic_batch(0);
  const auto activations = measure_activations([&](int64_t n) {
    return model->loss({batch.input.narrow(0, 0, n), batch.target.narrow(0, 0, n)});
  });
  for (const int64_t n : {32, 64, 128, 256, 512}) EXPECT_EQ(activations.at(n), n * 1024 * 10 * 4);
  EXPECT_EQ(activations.at(32), 1.25 * 1048576);
  EXPECT_EQ(activations.at(512), 20.00 * 1048576);
  EXPECT_EQ(activations.first_batch_exceeding(fixed.fixed()), 4101);
}

TEST(Breakdown, Crossover) {
  const ActivationCost cost{.per_example = 10, .fixed = 100};
  EXPECT_EQ(cost.at(3), 130);
  EXPECT_EQ(cost.first_batch_exceeding(130), 4);
  EXPECT_EQ(cost.first_batch_exceeding(131), 4);
  EXPECT_EQ(cost.first_batch_exceeding(5), 1);
  EXPECT_EQ((ActivationCost{.per_example = 0, .fixed = 100}.first_batch_exceeding(100)), std::nullopt);
}

TEST(Breakdown, BadBatches) {
  const auto loss = [](int64_t n) { return torch::ones({n}); };
  EXPECT_THROW(measure_activations(loss, 0, 4), InvalidArgument);
  EXPECT_THROW(measure_activations(loss, 4, 4), InvalidArgument);
}

}  // namespace
}  // namespace refrain
