#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "models/densenet.h"
#include "models/lstm.h"
#include "models/mlp.h"
#include "models/ragged_lstm.h"
#include "models/resnet.h"
#include "models/transformer.h"
#include "models/treelstm.h"
#include "models/unet.h"
#include "models/zoo.h"
#include "refrain/error.h"

namespace refrain::models {
namespace {

int64_t parameter_count(TrainableModel& model) {
  int64_t count = 0;
  for (const auto& p : model.module().parameters()) count += p.numel();
  return count;
}

std::string message_of(const std::string& name, const ModelOptions& options) {
  try {
    make_model(name, options);
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST(ModelsTest, ParameterCounts) {
  EXPECT_EQ(parameter_count(*make_model("mlp")), 10'496'000);       // the notebook, section 1.1
  EXPECT_EQ(parameter_count(*make_model("resnet18")), 11'689'512);  // torchvision
  EXPECT_EQ(parameter_count(*make_model("resnet50")), 25'557'032);
  EXPECT_EQ(parameter_count(*make_model("densenet121")), 7'978'856);
  const auto block = [](int64_t d) { return 12 * d * d + 13 * d; };
  EXPECT_EQ(parameter_count(*make_model("blocks-small")), 12 * block(64));
  EXPECT_EQ(parameter_count(*make_model("blocks")), 8 * block(256));
  EXPECT_EQ(parameter_count(*make_model("gptsmall")), 12 * block(64) + (256 + 128 + 2) * 64);  // tied: no head
  EXPECT_EQ(parameter_count(*make_model("lstm")), 2 * (2 * 4 * 128 * 128 + 2 * 4 * 128) + 256 * 128 + 128 * 256 + 256);
}

TEST(ModelsTest, OutputShapes) {
  torch::NoGradGuard no_grad;
  const auto tokens = torch::zeros({2, 20}, torch::kLong);
  EXPECT_EQ(Gpt(50, 32, 2, BlockOptions{.width = 16, .causal = true})->forward(tokens).sizes(),
            torch::IntArrayRef({2, 20, 50}));
  EXPECT_EQ(LstmLanguageModel(50, 16, 2)->forward(tokens).sizes(), torch::IntArrayRef({2, 20, 50}));
  EXPECT_EQ(ResNet(std::array<int64_t, 4>{1, 1, 1, 1}, true, 7)->forward(torch::zeros({2, 3, 40, 40})).sizes(),
            torch::IntArrayRef({2, 7}));
  EXPECT_EQ(UNet(4)->forward(torch::zeros({2, 3, 16, 24})).sizes(), torch::IntArrayRef({2, 1, 16, 24}));
  EXPECT_EQ(DenseNet(std::array<int64_t, 4>{1, 1, 1, 1}, 4, 7)->forward(torch::zeros({2, 3, 64, 64})).sizes(),
            torch::IntArrayRef({2, 7}));
  EXPECT_EQ(RaggedLstm(50, 16, 2)->forward(tokens, torch::tensor({20, 3})).sizes(), torch::IntArrayRef({2, 20, 50}));
  EXPECT_EQ(TreeLstm(50, 16, 7)->forward(torch::tensor({{1, 2, -1, 3, -1}, {1, 2, 3, -1, -1}})).sizes(),
            torch::IntArrayRef({2, 7}));
  EXPECT_EQ(Mlp(8, 5, 3)->forward(torch::zeros({2, 8})).sizes(), torch::IntArrayRef({2, 5}));
}

TEST(ModelsTest, CausalBlocksDoNotSeeLaterTokens) {
  torch::NoGradGuard no_grad;
  Gpt gpt(50, 8, 2, BlockOptions{.width = 16, .causal = true});
  auto a = torch::zeros({1, 8}, torch::kLong), b = a.clone();
  b[0][7] = 3;
  const auto x = gpt->forward(a), y = gpt->forward(b);
  EXPECT_TRUE(torch::allclose(x.narrow(1, 0, 7), y.narrow(1, 0, 7)));
  EXPECT_FALSE(torch::allclose(x.narrow(1, 7, 1), y.narrow(1, 7, 1)));
}

TEST(ModelsTest, WhatLiesBehindAnExamplesEndIsNotSeen) {
  torch::NoGradGuard no_grad;
  RaggedLstm net(50, 16, 2);
  const auto lengths = torch::tensor({8, 3});
  auto a = torch::randint(50, {2, 8}, torch::kLong), b = a.clone();
  b[1].narrow(0, 3, 5) = 7;
  EXPECT_TRUE(torch::equal(net->forward(a, lengths)[1].narrow(0, 0, 3), net->forward(b, lengths)[1].narrow(0, 0, 3)));
}

TEST(ModelsTest, TreesOfOneShapeAndOtherLeavesOrOtherShapesDiffer) {
  torch::NoGradGuard no_grad;
  TreeLstm net(50, 16, 7);
  const auto out =
      net->forward(torch::tensor({{1, 2, -1, 3, -1}, {1, 2, 3, -1, -1}, {1, 2, -1, 4, -1}, {1, 2, -1, 3, -1}}));
  EXPECT_TRUE(torch::equal(out[0], out[3]));
  EXPECT_FALSE(torch::allclose(out[0], out[1]));
  EXPECT_FALSE(torch::allclose(out[0], out[2]));
  const auto batch = make_model("treelstm", {.batch = 50, .seq = 9})->synthetic_batch(0);
  EXPECT_TRUE(((batch.input == TreeLstmImpl::kJoin).sum(1) == 8).all().item<bool>());
  EXPECT_GT(std::get<0>(torch::unique_dim(batch.input == TreeLstmImpl::kJoin, 0)).size(0), 20);
}

TEST(ModelsTest, ByteModelStartsAtTheLossOfGuessing) {
  auto gpt = make_model("gptsmall");
  EXPECT_NEAR(gpt->loss(gpt->synthetic_batch(0)).item<double>(), std::log(256.0), 0.1);
}

TEST(ModelsTest, SameSeedSameWeightsAndTheDefaultGeneratorIsNotTouched) {
  torch::manual_seed(7);
  const auto before = at::detail::getDefaultCPUGenerator().get_state();
  auto a = make_model("gptsmall", {.seed = 1}), b = make_model("gptsmall", {.seed = 1}),
       c = make_model("gptsmall", {.seed = 2});
  const auto batch = a->synthetic_batch(3);
  EXPECT_TRUE(torch::equal(batch.input, a->synthetic_batch(3).input));
  EXPECT_TRUE(torch::equal(before, at::detail::getDefaultCPUGenerator().get_state()));
  const auto x = a->module().parameters(), y = b->module().parameters(), z = c->module().parameters();
  for (size_t i = 0; i < x.size(); ++i) EXPECT_TRUE(torch::equal(x[i], y[i]));
  EXPECT_FALSE(torch::equal(x[0], z[0]));
}

TEST(ModelsTest, SyntheticBatchHasThePresetsSize) {
  for (const auto& name : model_names()) {
    auto model = make_model(name);
    const auto batch = model->synthetic_batch(0);
    EXPECT_EQ(batch.input.size(0), model->options().batch) << name;
    EXPECT_GT(model->units_per_batch(), 0) << name;
  }
}

TEST(ModelsTest, EveryModelOffersNoneAndPerBlock) {
  for (const auto& name : model_names()) {
    auto model =
        make_model(name, name.find("net") != std::string::npos ? ModelOptions{.image_size = 40} : ModelOptions{});
    const auto strategies = model->strategies();
    EXPECT_EQ(strategies.front(), "none") << name;
    EXPECT_NO_THROW(model->set_strategy("per_block")) << name;
    EXPECT_NO_THROW(model->set_strategy("checkpoint")) << name;
    EXPECT_THROW(model->set_strategy("per_blok"), InvalidArgument) << name;
  }
}

TEST(ModelsTest, SelectiveTakesAPolicyByName) {
  auto gpt = make_model("gptsmall"), mlp = make_model("mlp");
  for (const char* policy :
       {"compute_intensive", "matmuls", "dots", "every_second_matmul", "random", "everything", "nothing"}) {
    EXPECT_NO_THROW(gpt->set_strategy(std::string("selective:") + policy)) << policy;
    EXPECT_THROW(mlp->set_strategy(std::string("selective:") + policy), InvalidArgument) << policy;
  }
  for (const char* strategy : {"selective:", "selective:POLICY", "per_block:2", "checkpoint:2", "none:", ":matmuls"})
    EXPECT_THROW(gpt->set_strategy(strategy), InvalidArgument) << strategy;
  try {
    gpt->set_strategy("selective:matmul");
    ADD_FAILURE();
  } catch (const InvalidArgument& error) {
    EXPECT_TRUE(contains(error.what(), "'selective:matmul': expected after the colon one of matmuls, "))
        << error.what();
  }
}

TEST(ModelsTest, UnderAutocastTheLossIsStillFloat) {
  for (const auto dtype : {torch::kBFloat16, torch::kHalf}) {
    auto full = make_model("blocks-small", {.depth = 2}),
         mixed = make_model("blocks-small", {.depth = 2, .amp = dtype});
    const auto batch = full->synthetic_batch(0);
    const auto expected = full->loss(batch), loss = mixed->loss(batch);
    EXPECT_EQ(loss.scalar_type(), torch::kFloat);
    EXPECT_FALSE(torch::equal(loss, expected));
    EXPECT_TRUE(torch::allclose(loss, expected, 1e-2)) << loss << expected;
  }
}

TEST(ModelsTest, UnknownNamesAreAnsweredWithTheNearestFirst) {
  EXPECT_TRUE(contains(message_of("resnet51", {}), "model 'resnet51': expected one of resnet50, "));
  EXPECT_TRUE(contains(
      message_of("zzz", {}),
      "mlp, gptsmall, gpt, blocks-small, blocks, resnet18, resnet50, densenet121, unet, lstm, lstm-ragged, treelstm"));
}

TEST(ModelsTest, SizesOutOfRange) {
  EXPECT_TRUE(contains(message_of("gpt", {.batch = -1}), "batch -1 for model gpt: expected 1 to 65536 (preset: 8)"));
  EXPECT_TRUE(contains(message_of("mlp", {.seq = 3}), "seq 3 for model mlp: the model has no such size"));
  EXPECT_TRUE(contains(message_of("gpt", {.width = 30}), "width 30 for model gpt: expected a multiple of 4"));
  EXPECT_TRUE(contains(message_of("gpt", {.dropout = 1.0}), "dropout 1 for model gpt"));
  EXPECT_TRUE(contains(message_of("gpt", {.dropout = NAN}), "dropout nan for model gpt"));
  EXPECT_TRUE(contains(message_of("mlp", {.dropout = 0.5}), "has no dropout"));
  EXPECT_TRUE(contains(message_of("unet", {.image_size = 30}), "multiple of 4"));
  EXPECT_TRUE(contains(message_of("resnet18", {.batch = 1, .image_size = 32}), "BatchNorm"));
}

}  // namespace
}  // namespace refrain::models
