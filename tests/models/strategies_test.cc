#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>

#include "models/zoo.h"
#include "refrain/error.h"
#include "refrain/memory.h"
#include "refrain/tape.h"

/// Every strategy of every model, at small sizes: the same bits as the plain run, with something replayed.
namespace refrain::models {
namespace {

struct Case {
  const char* model;
  ModelOptions sizes;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.model; }

using Trace = std::vector<std::pair<std::string, torch::Tensor>>;

/// Two steps of gradient descent from the seed's weights: losses, gradients, buffers, generator.
Trace train(const Case& c, const std::string& strategy) {
  auto model = make_model(c.model, c.sizes);
  model->set_strategy(strategy);
  const auto batch = model->synthetic_batch(1);
  torch::manual_seed(5);
  Trace trace;
  for (int step = 0; step < 2; ++step) {
    model->module().zero_grad();
    auto loss = model->loss(batch);
    loss.backward();
    trace.emplace_back("loss", loss.detach());
    torch::NoGradGuard no_grad;
    for (auto& item : model->module().named_parameters()) {
      EXPECT_TRUE(item.value().grad().defined()) << item.key();
      trace.emplace_back("gradient " + item.key(), item.value().grad().clone());
      item.value().sub_(item.value().grad(), 0.01);
    }
    for (auto& item : model->module().named_buffers()) trace.emplace_back("buffer " + item.key(), item.value().clone());
    trace.emplace_back("generator", at::detail::getDefaultCPUGenerator().get_state());
  }
  return trace;
}

bool is_bit_equal(const torch::Tensor& a, const torch::Tensor& b) {
  const auto x = a.contiguous(), y = b.contiguous();
  return x.sizes() == y.sizes() && std::memcmp(x.data_ptr(), y.data_ptr(), x.nbytes()) == 0;
}

/// Every strategy of the model, against "none".
void expect_bit_equal(const Case& c) {
  const Trace plain = train(c, "none");
  const auto model = make_model(c.model, c.sizes);
  auto strategies = model->strategies();
  // those for rows are not in the list: how many segments there can be depends on the sizes
  if (model->row_length() > 0) strategies.insert(strategies.end(), {"segments", "segments:2", "per_layer"});
  for (const auto& strategy : strategies) {
    const int64_t replayed = tape_stats().replayed_ops;
    const Trace other = train(c, strategy);
    EXPECT_EQ(tape_stats().replayed_ops > replayed, strategy != "none") << strategy;
    ASSERT_EQ(plain.size(), other.size());
    for (size_t i = 0; i < plain.size(); ++i) {
      EXPECT_TRUE(is_bit_equal(plain[i].second, other[i].second)) << strategy << ": " << plain[i].first;
    }
  }
}

class StrategiesTest : public testing::TestWithParam<Case> {};

TEST_P(StrategiesTest, AreBitEqualToPlainTraining) { expect_bit_equal(GetParam()); }

TEST_P(StrategiesTest, AreBitEqualUnderAutocast) {
  Case c = GetParam();
  c.sizes.amp = torch::kBFloat16;
  expect_bit_equal(c);
}

TEST_P(StrategiesTest, RefusesSegmentsThatCannotBe) {
  auto model = make_model(GetParam().model, GetParam().sizes);
  const auto refused = [&](const std::string& strategy) {
    EXPECT_THROW(model->set_strategy(strategy), InvalidArgument) << strategy;
  };
  for (const char* strategy : {"segments:0", "segments:-1", "segments:", "segments:2x", "segments:N", "per_layers"})
    refused(strategy);
  refused(fmt::format("segments:{}", model->row_length() + 1));
  if (model->row_length() == 0) {
    for (const char* strategy : {"segments", "segments:1"}) refused(strategy);
  } else {
    model->set_strategy("segments:1");
    model->set_strategy(fmt::format("segments:{}", model->row_length()));
  }
}

TEST_P(StrategiesTest, PerBlockHoldsLessAfterForward) {
  auto model = make_model(GetParam().model, GetParam().sizes);
  const auto batch = model->synthetic_batch(1);
  auto held = [&](const char* strategy) {
    model->set_strategy(strategy);
    MemoryScope memory;
    auto loss = model->loss(batch);
    return memory.current();
  };
  const Bytes plain = held("none");
  EXPECT_LT(held("per_block"), plain);
}

TEST_P(StrategiesTest, LeaveNothingOnTheTape) {
  auto model = make_model(GetParam().model, GetParam().sizes);
  const auto batch = model->synthetic_batch(1);
  for (const auto& strategy : model->strategies()) {
    model->set_strategy(strategy);
    model->loss(batch).backward();
    EXPECT_EQ(tape_stats().live_ops, 0) << strategy;
    EXPECT_EQ(tape_stats().live_slots, 0) << strategy;
    model->loss(batch);  // dropped without backward
    EXPECT_EQ(tape_stats().live_ops, 0) << strategy;
  }
}

INSTANTIATE_TEST_SUITE_P(Zoo, StrategiesTest,
                         testing::Values(Case{"mlp", {.batch = 8, .depth = 10, .width = 64}},
                                         Case{"gptsmall", {.batch = 2, .seq = 32, .depth = 3}},
                                         Case{"gpt", {.batch = 2, .seq = 32, .depth = 4, .width = 64, .dropout = 0.3}},
                                         Case{"blocks-small", {.batch = 2, .seq = 32, .depth = 3}},
                                         Case{"blocks", {.batch = 2, .seq = 32, .depth = 4, .width = 64}},
                                         Case{"resnet18", {.batch = 2, .image_size = 64, .classes = 10}},
                                         Case{"resnet50", {.batch = 2, .image_size = 64, .classes = 10}},
                                         Case{"densenet121", {.batch = 2, .image_size = 32, .classes = 10}},
                                         Case{"unet", {.batch = 2, .image_size = 32, .width = 8}},
                                         Case{"lstm", {.batch = 2, .seq = 40, .width = 32}},
                                         Case{"lstm-ragged", {.batch = 4, .seq = 12, .width = 32}},
                                         Case{"treelstm", {.batch = 3, .seq = 8, .width = 32}}),
                         [](const auto& instance) {
                           std::string name = instance.param.model;
                           for (char& ch : name) ch = ch == '-' ? '_' : ch;
                           return name;
                         });

}  // namespace
}  // namespace refrain::models
