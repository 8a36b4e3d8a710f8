#include "refrain/timeline.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <thread>

#include "memory/testing.h"
#include "models/zoo.h"
#include "refrain/checkpoint.h"
#include "refrain/error.h"
#include "refrain/memory.h"
#include "refrain/selective.h"

namespace refrain {
namespace {

using Json = nlohmann::json;

at::Tensor bytes(Bytes n) { return at::empty({n}, at::kByte); }

MemoryTimelineReport record(const std::function<void()>& run) {
  install_memory_tracking();
  MemoryTimeline timeline;
  run();
  return timeline.stop();
}

/// Blocks that `op` made, in order.
std::vector<MemoryBlock> made_by(const MemoryTimelineReport& report, std::string_view op) {
  std::vector<MemoryBlock> found;
  for (const auto& block : report.blocks)
    if (block.op == op) found.push_back(block);
  return found;
}

std::vector<MemoryPhase> phases(const MemoryTimelineReport& report) {
  std::vector<MemoryPhase> list;
  for (const auto& span : report.phases) list.push_back(span.phase);
  return list;
}

Bytes alive(const MemoryTimelineReport& report, MemoryKind kind) {
  Bytes sum = 0;
  for (const auto& block : report.blocks)
    if (block.outlives_recording && block.kind == kind) sum += block.bytes;
  return sum;
}

/// What must hold of any report: levels follow from blocks, the peak is their highest, the kinds at it sum to it.
void check(const MemoryTimelineReport& report) {
  Bytes level = 0;
  for (const auto& block : report.blocks)
    if (block.preexisting) level += block.bytes;
  EXPECT_EQ(level, report.base_bytes);
  Bytes peak = level;
  int64_t allocations = 0;
  double time = 0;
  for (const auto& event : report.events) {
    const auto& block = report.blocks.at(static_cast<size_t>(event.block));
    level += event.is_free ? -block.bytes : block.bytes;
    ASSERT_EQ(level, event.level);
    ASSERT_GE(event.time_us, time);
    time = event.time_us;
    peak = std::max(peak, level);
    allocations += event.is_free ? 0 : 1;
  }
  EXPECT_EQ(peak, report.peak_bytes);
  EXPECT_EQ(allocations, report.allocations);
  EXPECT_EQ(std::accumulate(report.peak_by_kind.begin(), report.peak_by_kind.end(), Bytes{0}), report.peak_bytes);
  Bytes at_peak = 0;
  for (const auto block : report.peak_blocks) at_peak += report.blocks.at(static_cast<size_t>(block)).bytes;
  EXPECT_EQ(at_peak, report.peak_bytes);
  for (size_t i = 0; i < report.phases.size(); ++i) {
    const double begin = i == 0 ? 0.0 : report.phases[i - 1].end_us;
    EXPECT_EQ(report.phases[i].begin_us, begin);
    EXPECT_LE(begin, report.phases[i].end_us);
  }
}

TEST(Timeline, ExactBytesAndLevels) {
  const auto report = record([] {
    const auto a = bytes(1000);
    bytes(5000);
    const auto b = bytes(10);
  });
  check(report);
  ASSERT_EQ(report.allocations, 3);
  EXPECT_EQ(report.peak_bytes - report.base_bytes, 6000);
  std::vector<Bytes> levels;
  for (const auto& event : report.events) levels.push_back(event.level - report.base_bytes);
  EXPECT_EQ(levels, (std::vector<Bytes>{1000, 6000, 1000, 1010, 1000, 0}));
  const auto blocks = made_by(report, "aten::empty");
  ASSERT_EQ(blocks.size(), 3u);
  EXPECT_EQ(blocks[1].bytes, 5000);
  EXPECT_EQ(blocks[1].sizes, std::vector<int64_t>{5000});
  EXPECT_EQ(blocks[1].kind, MemoryKind::kTemporary);
  EXPECT_FALSE(blocks[0].outlives_recording);
}

TEST(Timeline, NothingIsRecordedOutside) {
  const auto before = record([] {});
  const auto kept = bytes(100);
  const auto report = record([] {});
  EXPECT_EQ(report.allocations, 0);
  EXPECT_TRUE(report.events.empty());
  EXPECT_EQ(report.peak_bytes, report.base_bytes);
  check(report);
}

TEST(Timeline, KindsOfAStep) {
  install_memory_tracking();
  torch::nn::Sequential net(torch::nn::Linear(64, 32), torch::nn::BatchNorm1d(32), torch::nn::Linear(32, 8));
  torch::optim::Adam adam(net->parameters(), torch::optim::AdamOptions(1e-3));
  const auto x = torch::randn({16, 64});
  Bytes weights = 0, buffers = 0;
  for (const auto& p : net->parameters()) weights += static_cast<Bytes>(p.nbytes());
  for (const auto& b : net->buffers()) buffers += static_cast<Bytes>(b.nbytes());

  MemoryTimeline timeline(*net, adam);
  timeline.annotate(MemoryKind::kInput, {x}, "x");
  net->forward(x).relu().sum().backward();
  adam.step();
  const auto report = timeline.stop();
  check(report);
  EXPECT_EQ(alive(report, MemoryKind::kParameter), weights);
  EXPECT_EQ(alive(report, MemoryKind::kGradient), weights);
  EXPECT_EQ(alive(report, MemoryKind::kOptimizerState), 2 * weights);
  EXPECT_EQ(alive(report, MemoryKind::kBuffer), buffers);
  EXPECT_EQ(alive(report, MemoryKind::kInput), 16 * 64 * 4);
  EXPECT_EQ(alive(report, MemoryKind::kTemporary), 0);
  EXPECT_EQ(report.highest(MemoryKind::kGradient), weights);
  EXPECT_EQ(phases(report), (std::vector{MemoryPhase::kForward, MemoryPhase::kBackward, MemoryPhase::kOptimizer}));
  // linear, batch norm and its two statistics, linear, relu
  EXPECT_GE(report.highest(MemoryKind::kActivationKept), (32 * 16 * 2 + 2 * 32 + 8 * 16) * 4);
  const auto gradient = std::find_if(report.blocks.begin(), report.blocks.end(), [](const MemoryBlock& block) {
    return block.kind == MemoryKind::kGradient && block.module == "0.weight";
  });
  ASSERT_NE(gradient, report.blocks.end());
  EXPECT_EQ(gradient->sizes, (std::vector<int64_t>{32, 64}));
  EXPECT_EQ(gradient->phase, MemoryPhase::kBackward);
}

TEST(Timeline, StateFromBeforeAndGradientsDroppedInside) {
  install_memory_tracking();
  torch::nn::Linear net(64, 64);
  const Bytes weights = 64 * 65 * 4;
  torch::optim::SGD sgd(net->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
  const auto step = [&] {
    net->forward(torch::ones({4, 64})).sum().backward();
    sgd.step();
    sgd.zero_grad();
  };
  step();
  MemoryTimeline timeline(*net, sgd);
  step();
  const auto report = timeline.stop();
  check(report);
  EXPECT_EQ(alive(report, MemoryKind::kOptimizerState), weights);
  EXPECT_EQ(alive(report, MemoryKind::kGradient), 0);
  EXPECT_EQ(report.highest(MemoryKind::kGradient), weights);
}

TEST(Timeline, ActivationsKeptTemporariesAndWorkspace) {
  const auto w = torch::randn({32, 32}).requires_grad_();
  const auto x = torch::randn({8, 32});
  const auto report = record([&] {
    auto h = x.mm(w);  // sin keeps it
    auto y = h.sin();  // exp keeps only its result
    auto z = y.exp();
    y.reset();
    z.sum().backward();
  });
  check(report);
  EXPECT_EQ(made_by(report, "aten::mm").front().kind, MemoryKind::kActivationKept);
  EXPECT_EQ(made_by(report, "aten::sin").front().kind, MemoryKind::kTemporary);
  EXPECT_EQ(made_by(report, "aten::exp").front().kind, MemoryKind::kActivationKept);
  EXPECT_EQ(made_by(report, "aten::exp").front().sizes, (std::vector<int64_t>{8, 32}));

  const auto lstm = record([] {
    torch::NoGradGuard no_grad;
    torch::var(torch::randn({100, 100}), {0}, true, false);
    torch::nn::functional::cross_entropy(torch::randn({10, 10}), torch::zeros({10}, torch::kLong));
  });
  check(lstm);
  const auto inside = made_by(lstm, "aten::cross_entropy_loss");
  ASSERT_FALSE(inside.empty());
  EXPECT_EQ(inside.front().bytes, 400);  // the log softmax, gone when the loss is there
  EXPECT_EQ(inside.front().kind, MemoryKind::kWorkspace);
}

TEST(Timeline, RecomputedBytesHaveTheModuleOfTheirForward) {
  const auto w = torch::randn({32, 32}).requires_grad_();
  const auto x = torch::randn({8, 32});
  const auto report = record([&] {
    at::Tensor y;
    {
      ModuleScope scope("encoder");
      y = checkpoint(
          [&](const at::Tensor& h) {
            ModuleScope inner("mlp");
            return h.mm(w).sin().exp();
          },
          x);
    }
    y.sum().backward();
  });
  check(report);
  const auto products = made_by(report, "aten::mm");
  ASSERT_GE(products.size(), 2u);
  EXPECT_EQ(products[0].phase, MemoryPhase::kForward);
  EXPECT_EQ(products[0].kind, MemoryKind::kTemporary);
  EXPECT_EQ(products[0].module, "encoder.mlp");
  EXPECT_EQ(products[1].phase, MemoryPhase::kRecompute);
  EXPECT_EQ(products[1].kind, MemoryKind::kRecomputed);
  EXPECT_EQ(products[1].module, "encoder.mlp");
  EXPECT_EQ(products[1].sizes, (std::vector<int64_t>{8, 32}));
  const auto gradient = made_by(report, "MmBackward0").front();
  EXPECT_EQ(gradient.phase, MemoryPhase::kBackward);
  EXPECT_EQ(gradient.module, "encoder.mlp");
  EXPECT_EQ(phases(report), (std::vector{MemoryPhase::kForward, MemoryPhase::kBackward, MemoryPhase::kRecompute,
                                         MemoryPhase::kBackward}));
}

TEST(Timeline, RerunIsRecomputation) {
  const auto w = torch::randn({32, 32}).requires_grad_();
  const auto report = record([&] {
    const auto options = CheckpointOptions().recompute_mode(RecomputeMode::kRerunFunction);
    checkpoint(
        options, [w](const at::Tensor& h) { return h.mm(w).sin(); }, torch::randn({8, 32}))
        .sum()
        .backward();
  });
  check(report);
  EXPECT_EQ(made_by(report, "aten::mm").at(1).kind, MemoryKind::kRecomputed);
}

TEST(Timeline, AccumulatedStepsAlternate) {
  const auto w = torch::randn({32, 32}).requires_grad_();
  const auto report = record([&] {
    for (int i = 0; i < 2; ++i) {
      auto loss = torch::randn({8, 32}).mm(w).sin().sum();
      loss.backward();
      loss.item<float>();
    }
  });
  check(report);
  EXPECT_EQ(phases(report), (std::vector{MemoryPhase::kForward, MemoryPhase::kBackward, MemoryPhase::kForward,
                                         MemoryPhase::kBackward}));
  for (const auto& block : made_by(report, "aten::mm")) {
    if (block.phase == MemoryPhase::kForward) {
      EXPECT_EQ(block.kind, MemoryKind::kActivationKept);
    }
  }
}

TEST(Timeline, PhaseScopeNamesTheRest) {
  const auto report = record([] {
    {
      PhaseScope phase(MemoryPhase::kOptimizer);
      bytes(100);
      {
        PhaseScope inner(MemoryPhase::kForward);
        bytes(200);
      }
      bytes(300);
    }
    bytes(400);
  });
  check(report);
  std::vector<MemoryPhase> of;
  for (const auto& block : report.blocks)
    if (!block.preexisting) of.push_back(block.phase);
  EXPECT_EQ(made_by(report, "aten::empty").size(), 2u);  // those in forward
  EXPECT_EQ(of, (std::vector{MemoryPhase::kOptimizer, MemoryPhase::kForward, MemoryPhase::kOptimizer,
                             MemoryPhase::kForward}));
}

TEST(Timeline, OtherIsWhatNobodyNamed) {
  install_memory_tracking();
  auto unnamed = bytes(1000), freed = bytes(300);
  const auto named = bytes(50);
  MemoryTimeline timeline;
  timeline.annotate(MemoryKind::kInput, {named, at::Tensor()});
  timeline.annotate(MemoryKind::kBuffer, {named});  // what was known stays
  freed.reset();
  const auto report = timeline.stop();
  check(report);
  EXPECT_EQ(report.peak_of(MemoryKind::kInput), 50);
  EXPECT_EQ(report.peak_of(MemoryKind::kOther), report.base_bytes - 50);
  EXPECT_EQ(alive(report, MemoryKind::kOther), report.base_bytes - 350);
}

TEST(Timeline, TensorsWithoutOurMemoryAreLeftOut) {
  install_memory_tracking();
  std::vector<float> mine(100);
  const auto borrowed = torch::from_blob(mine.data(), {100});
  const auto sparse = torch::sparse_coo_tensor(torch::zeros({1, 1}, torch::kLong), torch::ones({1}), {3});
  MemoryTimeline timeline;
  timeline.annotate(MemoryKind::kInput, {borrowed, sparse, torch::empty({0})});
  const auto report = timeline.stop();
  EXPECT_EQ(report.peak_of(MemoryKind::kInput), 0);
  check(report);
}

TEST(Timeline, ExceptionsLeaveOperatorsBehind) {
  const auto report = record([] {
    EXPECT_ANY_THROW(torch::ones({2, 3}).mm(torch::ones({2, 3})));
    memory_testing::fail_nth_allocation(1);
    EXPECT_THROW(torch::ones({2, 3}).sin(), c10::OutOfMemoryError);
    bytes(100);
  });
  check(report);
  EXPECT_EQ(made_by(report, "aten::empty").back().bytes, 100);
}

TEST(Timeline, ThreadsKeepTheirOwnPhases) {
  install_memory_tracking();
  const MemoryScope scope;
  const Bytes base = memory_stats().current;
  const auto report = record([] {
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([] {
        const auto w = torch::randn({16, 16}).requires_grad_();
        for (int k = 0; k < 50; ++k)
          checkpoint([&](const at::Tensor& h) { return h.mm(w).sin(); }, torch::randn({4, 16})).sum().backward();
      });
    }
    for (auto& thread : threads) thread.join();
  });
  check(report);
  EXPECT_EQ(report.peak_bytes, base + scope.peak());
  EXPECT_EQ(phases(report), std::vector{MemoryPhase::kForward});
  int recomputed = 0;
  for (const auto& block : made_by(report, "aten::mm")) recomputed += block.kind == MemoryKind::kRecomputed;
  EXPECT_EQ(recomputed, 4 * 50);
}

TEST(Timeline, OneAtATime) {
  install_memory_tracking();
  MemoryTimeline timeline;
  EXPECT_THROW(MemoryTimeline(), InvalidArgument);
  bytes(10);
  EXPECT_EQ(timeline.stop().allocations, 1);
  EXPECT_THROW(timeline.stop(), InvalidArgument);
  { MemoryTimeline dropped; }
  EXPECT_EQ(record([] { bytes(10); }).allocations, 1);
}

TEST(Timeline, JsonAndTraceAreWhatTheReportSays) {
  const auto w = torch::randn({64, 64}).requires_grad_();
  auto report = record([&] {
    ModuleScope scope("a \"quoted\"\n\xff name");
    for (int i = 0; i < 3000; ++i) torch::zeros({1 + i % 7});
    torch::randn({64, 64}).mm(w).sin().sum().backward();
  });
  report.measured_overhead = 0.01;
  const auto json = Json::parse(report.json());
  EXPECT_EQ(json["kind"], "timeline");
  EXPECT_EQ(json["version"], 1);
  EXPECT_EQ(json["peak_bytes"], report.peak_bytes);
  EXPECT_EQ(json["measured_overhead"], 0.01);
  EXPECT_LE(json["points"].size(), 4000u);
  Bytes highest = 0, kinds = 0;
  double time = -1;
  for (const auto& point : json["points"]) {
    highest = std::max(highest, point[1].get<Bytes>());
    EXPECT_GE(point[0].get<double>(), time);
    time = point[0].get<double>();
  }
  EXPECT_EQ(highest, report.peak_bytes);
  // a kind's level holds until its next point
  std::map<std::string, std::pair<size_t, Bytes>> at;
  for (const auto& point : json["points"]) {
    Bytes sum = 0;
    for (const auto& [kind, levels] : json["kinds"].items()) {
      auto& [next, level] = at[kind];
      while (next < levels.size() && levels[next][0] <= point[0]) level = levels[next++][1].get<Bytes>();
      sum += level;
    }
    EXPECT_EQ(sum, point[1].get<Bytes>()) << point[0];
  }
  for (const auto& [kind, amount] : json["peak"]["by_kind"].items()) kinds += amount.get<Bytes>();
  EXPECT_EQ(kinds, report.peak_bytes);
  EXPECT_EQ(json["phases"].front()["name"], "forward");
  EXPECT_LE(json["peak"]["top"].size(), 20u);

  ASSERT_GE(report.resident.size(), 2u);
  EXPECT_EQ(json["resident"].size(), report.resident.size());
  EXPECT_EQ(json["resident_before_bytes"], memory_stats().resident_before);
  for (size_t i = 1; i < report.resident.size(); ++i)
    EXPECT_GE(report.resident[i].time_us, report.resident[i - 1].time_us);
  EXPECT_GT(report.resident_peak(), report.resident_before);

  size_t begun = 0, ended = 0, counters = 0;
  const auto trace = Json::parse(report.trace());
  for (const auto& event : trace["traceEvents"]) {
    begun += event["ph"] == "b";
    ended += event["ph"] == "e";
    counters += event["ph"] == "C";
  }
  EXPECT_EQ(begun, report.blocks.size());
  EXPECT_EQ(ended, begun);
  EXPECT_EQ(counters, report.events.size() + 1 + report.resident.size());
  EXPECT_NE(report.text().find("activation_kept"), std::string::npos);
}

struct Case {
  const char* model;
  models::ModelOptions sizes;
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.model; }

class TimelineModels : public testing::TestWithParam<Case> {};

TEST_P(TimelineModels, PeakIsTheAllocatorsAndOtherIsLittle) {
  install_memory_tracking();
  auto model = models::make_model(GetParam().model, GetParam().sizes);
  const auto batch = model->synthetic_batch(1);
  torch::optim::Adam adam(model->module().parameters(), torch::optim::AdamOptions(1e-3));
  for (const auto& strategy : model->strategies()) {
    model->set_strategy(strategy);
    for (int step = 0; step < 2; ++step) {
      model->module().zero_grad();
      const Bytes base = memory_stats().current;
      const MemoryScope scope;
      MemoryTimeline timeline(model->module(), adam);
      timeline.annotate(MemoryKind::kInput, {batch.input, batch.target});
      model->loss(batch).backward();
      adam.step();
      const auto report = timeline.stop();
      check(report);
      EXPECT_EQ(report.base_bytes, base) << strategy;
      EXPECT_EQ(report.peak_bytes, base + scope.peak()) << strategy;
      EXPECT_LT(report.peak_of(MemoryKind::kOther) * 100, report.peak_bytes) << strategy;
      EXPECT_EQ(report.highest(MemoryKind::kRecomputed) > 0, strategy != "none") << strategy;
      const auto order = phases(report);
      EXPECT_EQ(order.front(), MemoryPhase::kForward);
      EXPECT_EQ(order.back(), MemoryPhase::kOptimizer);
      EXPECT_EQ(std::count(order.begin(), order.end(), MemoryPhase::kForward), 1) << strategy;
      const auto& largest = report.blocks.at(static_cast<size_t>(report.peak_blocks.front()));
      EXPECT_FALSE(largest.module.empty()) << strategy;
      EXPECT_FALSE(largest.sizes.empty()) << strategy;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Zoo, TimelineModels,
                         testing::Values(Case{"mlp", {.batch = 64, .depth = 6, .width = 64}},
                                         Case{"gpt", {.batch = 2, .seq = 32, .depth = 2, .width = 64, .dropout = 0.3}},
                                         Case{"blocks", {.batch = 2, .seq = 32, .depth = 2, .width = 64}},
                                         Case{"resnet50", {.batch = 2, .image_size = 64, .classes = 10}},
                                         Case{"unet", {.batch = 2, .image_size = 32, .width = 8}},
                                         Case{"lstm", {.batch = 2, .seq = 40, .width = 32}}),
                         [](const auto& instance) { return std::string(instance.param.model); });

}  // namespace
}  // namespace refrain
