#include "refrain/memory_budget.h"

#include <filesystem>
#include <fstream>

#include "budget/step_state.h"
#include "graph/scale.h"
#include "tests/budget/model_training.h"

/// Steps that run by plan: the peak is the plan's to the byte, the bits are those of a plain run.
namespace refrain_test {
namespace {

refrain::PlanOptions seconds(double most) {
  return refrain::PlanOptions().time_limit(std::chrono::duration<double>(most));
}

using refrain::Budget;
using refrain::Bytes;
using refrain::MemoryBudget;
using refrain::StepPlan;
using refrain::StepTrace;

struct Case {
  const char* model;
  refrain::models::ModelOptions sizes;
  bool is_large = false;     ///< fewer optimizers
  int random_operators = 0;  ///< the tape keeps their generator's state, so that they can run again
  int limit = 50;            ///< percent of the way from the least peak to the plain one that a cap alone can keep
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.model; }

/// Forward and backward of a training, and the bytes of that.
class Steps {
 public:
  explicit Steps(const Case& c, const std::string& optimizer = "sgd")
      : training_(c.model, c.sizes, optimizer, refrain::models::make_model(c.model, c.sizes)->synthetic_batch(1)) {
    start_ = training_.state();
  }

  Training& training() { return training_; }
  void rewind() { training_.set_state(start_); }

  /// Most bytes that forward and backward add to the level before.
  Bytes peak_of_backward(Trace& trace) {
    const Bytes before = refrain::memory_stats().current;
    refrain::reset_peak_memory();
    training_.backward(trace);
    return refrain::memory_stats().peak - before;
  }

  /// Of whole steps, the peaks of each backward.
  std::vector<Bytes> run(Trace& trace, int steps, int micro_batches = 1) {
    std::vector<Bytes> peaks;
    for (int i = 0; i < steps; ++i) {
      training_.zero_grad();
      for (int micro = 0; micro < micro_batches; ++micro) peaks.push_back(peak_of_backward(trace));
      training_.update(trace);
    }
    return peaks;
  }

  /// Traced in between: weights and generator are put back.
  StepTrace profiled() {
    std::optional<StepTrace> traced;
    training_.zero_grad();
    Trace ignored;
    traced_at_ = refrain::memory_stats().current;
    traced = refrain::profile([&] { training_.backward(ignored); });
    training_.zero_grad();
    rewind();
    return *traced;
  }

  /// As `peak_of_backward`.
  Bytes peak_of(const StepPlan& plan) const { return plan.peak() - traced_at_; }
  Bytes peak_of(const StepTrace& trace) const { return trace.peak() - traced_at_; }

 private:
  Training training_;
  std::vector<Tensor> start_;
  Bytes traced_at_ = 0;
};

class BudgetModelsTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override { refrain::install_memory_tracking(); }
};

TEST_P(BudgetModelsTest, PeakIsThePlansAndResultsArePlain) {
  Steps steps(GetParam());
  Trace plain;
  const auto plain_peaks = steps.run(plain, 2);
  steps.rewind();
  const auto traced = steps.profiled();
  const auto state_bytes = static_cast<Bytes>(at::detail::getDefaultCPUGenerator().get_state().nbytes());
  EXPECT_EQ(steps.peak_of(traced), plain_peaks.back() + GetParam().random_operators * state_bytes);
  Bytes last = std::numeric_limits<Bytes>::max();
  for (const double fraction : {1.0, 0.7, 0.5, 0.3, 0.0}) {
    SCOPED_TRACE(fraction);
    const auto plan = refrain::plan_step(traced, refrain::Budget::fraction(fraction), seconds(0.5));
    EXPECT_LE(plan.peak(), last);
    last = plan.peak();
    steps.rewind();
    Trace got;
    std::vector<Bytes> peaks;
    {
      MemoryBudget budget(plan);
      peaks = steps.run(got, 2);
      const auto stats = budget.stats();
      EXPECT_EQ(stats.planned_steps, 2);
      EXPECT_EQ(stats.traced_steps, 0);
      EXPECT_EQ(stats.mismatched_steps, 0) << stats.first_mismatch;
    }
    for (const auto peak : peaks) EXPECT_EQ(peak, steps.peak_of(plan)) << "plan " << plan.brief();
    expect_equal(plain, got);
    std::cout << fmt::format(
        "{:<12} {:.1f}: plain {:>10}, planned {:>10}, measured {:>10}, {:.2f} ms of {:.2f} added\n", GetParam().model,
        fraction, steps.peak_of(traced), steps.peak_of(plan), peaks.back(), plan.added_ms(), traced.operators_ms());
  }
  EXPECT_LT(last, traced.peak());
}

TEST_P(BudgetModelsTest, TracesPlansAndRunsByItself) {
  for (const char* optimizer : {"sgd", "adam"})
    for (const int micro_batches : {1, 2}) {
      SCOPED_TRACE(fmt::format("{}, {} micro-batches", optimizer, micro_batches));
      if (GetParam().is_large && (optimizer == std::string("adam")) == (micro_batches == 1)) continue;
      // until it has seen which micro-batch follows which
      const int settling = micro_batches == 1 ? 1 : 4;
      Trace plain, got;
      const auto plain_peaks = Steps(GetParam(), optimizer).run(plain, settling + 2, micro_batches);
      Steps steps(GetParam(), optimizer);
      MemoryBudget budget(Budget::fraction(0.3));
      EXPECT_EQ(budget.report(), "");
      auto peaks = steps.run(got, settling, micro_batches);
      const auto settled = budget.stats();
      for (const auto peak : steps.run(got, 2, micro_batches)) peaks.push_back(peak);
      expect_equal(plain, got);
      const auto stats = budget.stats();
      EXPECT_EQ(stats.planned_steps, settled.planned_steps + 2 * micro_batches);
      EXPECT_EQ(stats.mismatched_steps, settled.mismatched_steps) << stats.first_mismatch;
      EXPECT_EQ(stats.traced_steps, settled.traced_steps);
      EXPECT_EQ(stats.traced_steps + stats.mismatched_steps + stats.planned_steps, (settling + 2) * micro_batches);
      if (micro_batches == 1) {
        EXPECT_EQ(stats.traced_steps, 1);
        EXPECT_EQ(stats.mismatched_steps, 0) << stats.first_mismatch;
      }
      EXPECT_GT(stats.planning_ms, 0.0);
      EXPECT_NE(budget.report(), "");
      for (size_t i = peaks.size() - static_cast<size_t>(2 * micro_batches); i < peaks.size(); ++i) {
        EXPECT_LT(peaks[i], plain_peaks[i]) << "step " << i;
        EXPECT_EQ(peaks[i],
                  peaks[peaks.size() - static_cast<size_t>(micro_batches) + i % static_cast<size_t>(micro_batches)])
            << "step " << i;
      }
    }
}

TEST_P(BudgetModelsTest, BytesHoldInEveryStep) {
  Steps steps(GetParam());
  Trace plain;
  steps.run(plain, 3);
  steps.rewind();
  const auto traced = steps.profiled();
  const auto least = refrain::plan_step(traced, refrain::Budget::fraction(0.0), seconds(0.5)).peak();
  const Bytes limit = least + (traced.peak() - least) * GetParam().limit / 100;
  Trace got;
  refrain::reset_peak_memory();
  MemoryBudget budget(Budget::bytes(limit));
  Bytes peak = 0;
  for (int i = 0; i < 3; ++i) {
    steps.training().zero_grad();
    const Bytes before = refrain::memory_stats().current;
    peak = std::max(peak, before + steps.peak_of_backward(got));
    steps.training().update(got);
    peak = std::max(peak, refrain::memory_stats().peak);
  }
  EXPECT_LE(peak, limit);
  const auto stats = budget.stats();
  EXPECT_EQ(stats.mismatched_steps, 0) << stats.first_mismatch;
  EXPECT_EQ(stats.planned_steps, 2);
  expect_equal(plain, got);
}

// Sizes at which activations are more than weights, where that costs no time.
INSTANTIATE_TEST_SUITE_P(
    Zoo, BudgetModelsTest,
    testing::Values(Case{"mlp", {.batch = 2048, .depth = 10, .width = 32}},
                    Case{"gptsmall", {.batch = 8, .seq = 64, .depth = 3}, false, 7},
                    Case{"gpt", {.batch = 8, .seq = 64, .depth = 3, .width = 64, .dropout = 0.3}, false, 7},
                    Case{"resnet18", {.batch = 4, .image_size = 64}, true},
                    Case{"unet", {.batch = 4, .image_size = 32, .width = 8}},
                    Case{"lstm", {.batch = 32, .seq = 32, .depth = 3, .width = 32}},
                    Case{"lstm-ragged", {.batch = 8, .seq = 12, .depth = 2, .width = 32}},
                    // most of its values are smaller than what a cap lets go
                    Case{"treelstm", {.batch = 4, .seq = 8, .width = 64}, false, 0, 100},
                    Case{"densenet121", {.batch = 2, .image_size = 32}, true}),
    [](const auto& instance) {
      std::string name = instance.param.model;
      std::replace(name.begin(), name.end(), '-', '_');
      return name;
    });

const Case kSmall{"gptsmall", {.batch = 8, .seq = 64, .depth = 2}};

class BudgetTest : public testing::Test {
 protected:
  BudgetTest() {
    refrain::install_memory_tracking();
    folder_ = std::filesystem::temp_directory_path() / fmt::format("refrain_budget_test_{}", getpid());
    std::filesystem::create_directories(folder_);
  }
  ~BudgetTest() override { std::filesystem::remove_all(folder_); }
  std::string path(const std::string& name) const { return folder_ / name; }
  std::string file(const std::string& name, const std::string& content) const {
    std::ofstream(path(name), std::ios::binary) << content;
    return path(name);
  }
  static std::string content_of(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }

 private:
  std::filesystem::path folder_;
};

/// What `fn` throws, which must be `InvalidArgument`.
template <typename F>
std::string refusal_of(F&& fn) {
  try {
    fn();
  } catch (const refrain::InvalidArgument& error) {
    return error.what();
  } catch (const refrain::FormatError& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing was refused";
  return "";
}

TEST_F(BudgetTest, AStepOfAnotherShapeIsPlannedForOnItsOwn) {
  const Case model_case{"unet", {.batch = 4, .image_size = 32, .width = 8}};
  const auto model = refrain::models::make_model(model_case.model, model_case.sizes);
  auto other_sizes = model_case.sizes;
  other_sizes.batch = 5;
  const auto usual = model->synthetic_batch(1),
             other = refrain::models::make_model(model_case.model, other_sizes)->synthetic_batch(2);
  const auto train = [&](Trace& trace, Steps& steps) {
    std::vector<Bytes> peaks;
    for (const auto* batch : {&usual, &usual, &other, &usual, &other}) {
      steps.training().set_batch(*batch);
      peaks.push_back(steps.run(trace, 1).front());
    }
    return peaks;
  };
  Trace plain, got;
  Steps plain_steps(model_case), steps(model_case);
  torch::manual_seed(5);
  const auto plain_peaks = train(plain, plain_steps);
  torch::manual_seed(5);
  MemoryBudget budget(Budget::fraction(0.3));
  const auto peaks = train(got, steps);
  expect_equal(plain, got);
  const auto stats = budget.stats();
  EXPECT_EQ(stats.traced_steps, 2);
  EXPECT_EQ(stats.planned_steps, 3);
  EXPECT_EQ(stats.mismatched_steps, 0) << stats.first_mismatch;
  for (const int i : {1, 3, 4}) EXPECT_LT(peaks[i], plain_peaks[i]);
  EXPECT_EQ(peaks[1], peaks[3]);
}

// A step that makes gradients, and steps that add to them: other operators.
TEST_F(BudgetTest, AStepThatDivergedIsTracedAgain) {
  const auto run = [](MemoryBudget* budget) {
    torch::manual_seed(5);
    torch::nn::Sequential net(torch::nn::Linear(16, 64), torch::nn::Tanh(), torch::nn::Linear(64, 16));
    for (int i = 0; i < 8; ++i) {
      for (auto& parameter : net->parameters())
        if (parameter.grad().defined()) parameter.mutable_grad().zero_();
      net->forward(torch::randn({32, 16})).square().sum().backward();
    }
    std::vector<Tensor> gradients;
    for (const auto& parameter : net->parameters()) gradients.push_back(parameter.grad());
    return std::pair(gradients, budget ? budget->stats() : refrain::MemoryBudgetStats());
  };
  const auto expected = run(nullptr).first;
  for (const bool opens_before_the_model : {true, false}) {
    MemoryBudget budget(Budget::fraction(0.3));
    if (!opens_before_the_model) {
      auto x = torch::ones({4}).requires_grad_();
      x.exp().sum().backward();
    }
    const auto [gradients, stats] = run(&budget);
    for (size_t i = 0; i < expected.size(); ++i) expect_bit_equal(expected[i], gradients[i]);
    EXPECT_GE(stats.planned_steps, 3) << stats.traced_steps << " traced, " << stats.mismatched_steps
                                      << " diverged: " << stats.first_mismatch;
  }
}

/// Warnings of LibTorch, while alive.
class Warnings final : public c10::WarningHandler {
 public:
  Warnings() : before_(c10::WarningUtils::get_warning_handler()) { c10::WarningUtils::set_warning_handler(this); }
  ~Warnings() override { c10::WarningUtils::set_warning_handler(before_); }
  void process(const c10::Warning& warning) override { said.push_back(warning.msg()); }
  std::vector<std::string> said;

 private:
  c10::WarningHandler* before_;
};

TEST_F(BudgetTest, AStepThatIsNotThePlannedOneIsSaidOnceAndRight) {
  Steps steps(kSmall);
  const auto plan = refrain::plan_step(steps.profiled(), refrain::Budget::fraction(0.0), seconds(0.5));
  auto other_sizes = kSmall.sizes;
  other_sizes.batch = 5;
  const auto usual = refrain::models::make_model(kSmall.model, kSmall.sizes)->synthetic_batch(1);
  const auto other = refrain::models::make_model(kSmall.model, other_sizes)->synthetic_batch(2);
  const auto train = [&](Trace& trace) {
    steps.rewind();
    for (const auto* batch : {&usual, &other, &other, &usual}) {
      steps.training().set_batch(*batch);
      steps.run(trace, 1);
    }
  };
  Trace plain, got;
  train(plain);
  Warnings warnings;
  {
    MemoryBudget budget(plan);
    train(got);
    const auto stats = budget.stats();
    EXPECT_EQ(stats.planned_steps, 2);
    EXPECT_EQ(stats.mismatched_steps, 2);
    EXPECT_NE(stats.first_mismatch, "");
  }
  ASSERT_EQ(warnings.said.size(), 1U);
  EXPECT_NE(warnings.said[0].find("step diverged from the plan"), std::string::npos) << warnings.said[0];
  expect_equal(plain, got);
}

TEST_F(BudgetTest, AnotherProgramUnderAPlanIsRight) {
  Steps steps(kSmall);
  const auto plan = refrain::plan_step(steps.profiled(), refrain::Budget::fraction(0.0), seconds(0.5));
  const Case mlp{"mlp", {.batch = 64, .depth = 3, .width = 32}};
  Trace plain, got;
  Steps(mlp).run(plain, 2);
  Steps others(mlp);
  MemoryBudget budget(plan);
  others.run(got, 2);
  expect_equal(plain, got);
  EXPECT_EQ(budget.stats().planned_steps, 0);
}

TEST_F(BudgetTest, AnErrorInAStepLeavesTheNextOnesRight) {
  Steps steps(kSmall);
  Trace plain, got;
  steps.run(plain, 2);
  steps.rewind();
  const auto traced = steps.profiled();
  MemoryBudget budget(refrain::plan_step(traced, refrain::Budget::fraction(0.3), seconds(0.5)));
  for (int i = 0; i < 2; ++i) {
    {
      auto loss =
          steps.training().model().loss(refrain::models::make_model(kSmall.model, kSmall.sizes)->synthetic_batch(1));
      loss.register_hook([](const Tensor&) -> Tensor { throw std::runtime_error("a hook"); });
      EXPECT_THROW(loss.backward(), std::exception);
    }
    flush_engine();
    steps.rewind();
    got.clear();
    steps.run(got, 2);
    expect_equal(plain, got);
  }
}

TEST_F(BudgetTest, WhatACapDidIsAPlanOfNoHigherPeak) {
  for (const auto& c : {kSmall, Case{"unet", {.batch = 4, .image_size = 32, .width = 8}},
                        Case{"mlp", {.batch = 2048, .depth = 10, .width = 32}}}) {
    SCOPED_TRACE(c.model);
    Steps steps(c);
    Trace plain, got;
    steps.run(plain, 2);
    steps.rewind();
    const auto plain_trace = steps.profiled();
    const Bytes least = refrain::plan_step(plain_trace, refrain::Budget::fraction(0.0), seconds(0.5)).peak();
    const Bytes limit = least + (plain_trace.peak() - least) * 6 / 10;
    std::optional<StepTrace> capped;
    {
      refrain::MemoryCap cap(limit);
      capped = steps.profiled();
      EXPECT_GT(cap.stats().evictions, 0);
    }
    const auto plan = refrain::plan_from_cap_decisions(*capped);
    EXPECT_TRUE(plan.fits());
    EXPECT_LE(plan.peak(), limit);
    MemoryBudget budget(plan);
    for (const auto peak : steps.run(got, 2)) EXPECT_LE(peak, steps.peak_of(plan));
    EXPECT_EQ(budget.stats().planned_steps, 2) << budget.stats().first_mismatch;
    expect_equal(plain, got);
    std::cout << fmt::format("{}: limit {}, as recorded {}, plain {}\n", c.model, limit, plan.peak(),
                             plain_trace.peak());
  }
}

TEST_F(BudgetTest, TracesAndPlansComeBackFromFiles) {
  Steps steps(kSmall);
  const auto traced = steps.profiled();
  traced.save(path("trace.json"));
  const auto loaded = StepTrace::load(path("trace.json"));
  EXPECT_EQ(loaded.operators(), traced.operators());
  EXPECT_GT(loaded.operators(), 100);
  EXPECT_EQ(loaded.peak(), traced.peak());
  EXPECT_DOUBLE_EQ(loaded.operators_ms(), traced.operators_ms());
  loaded.save(path("again.json"));
  EXPECT_EQ(content_of(path("again.json")), content_of(path("trace.json")));

  const auto plan = refrain::plan_step(loaded, refrain::Budget::fraction(0.3), seconds(0.5));
  EXPECT_TRUE(plan.fits());
  EXPECT_GE(plan.added_ms(), plan.lower_bound_ms());
  plan.save(path("plan.json"));
  const auto loaded_plan = StepPlan::load(path("plan.json"));
  EXPECT_EQ(loaded_plan.peak(), plan.peak());
  EXPECT_DOUBLE_EQ(loaded_plan.added_ms(), plan.added_ms());

  Trace plain, got;
  steps.run(plain, 2);
  steps.rewind();
  MemoryBudget budget(loaded_plan);
  for (const auto peak : steps.run(got, 2)) EXPECT_EQ(peak, steps.peak_of(plan));
  EXPECT_EQ(budget.stats().planned_steps, 2) << budget.stats().first_mismatch;
  expect_equal(plain, got);
}

TEST_F(BudgetTest, APlanForABatchThatWasNotTracedKeepsItsPeak) {
  Steps steps({"unet", {.batch = 2, .image_size = 32, .width = 8}});
  Bytes level = 0;
  const auto set_batch = [&](int64_t batch) {
    const refrain::models::ModelOptions sizes{.batch = batch, .image_size = 32, .width = 8};
    steps.training().set_batch(refrain::models::make_model("unet", sizes)->synthetic_batch(1));
    steps.training().zero_grad();
    level = refrain::memory_stats().current;
  };
  set_batch(2);
  const auto two = steps.profiled();
  const Bytes level_of_two = level;
  set_batch(3);
  const auto three = steps.profiled();
  const Bytes level_of_five = level_of_two + 3 * (level - level_of_two);
  auto five = refrain::graph::scale({two.state().graph, 2}, {three.state().graph, 3}, 5);
  auto nothing = refrain::graph::empty_schedule(five);
  const StepTrace scaled(std::make_shared<StepTrace::State>(StepTrace::State{std::move(five), std::move(nothing)}));
  const auto plan = refrain::plan_step(scaled, refrain::Budget::fraction(0.3), seconds(0.5));
  EXPECT_GT(plan.added_ms(), 0.0);

  set_batch(5);
  Trace plain, got;
  const auto plain_peaks = steps.run(plain, 2);
  steps.rewind();
  MemoryBudget budget(plan);
  const auto peaks = steps.run(got, 2);
  EXPECT_EQ(budget.stats().planned_steps, 2) << budget.stats().first_mismatch;
  for (const auto peak : peaks) EXPECT_EQ(peak, plan.peak() - level_of_five);
  EXPECT_LT(peaks.back(), plain_peaks.back() * 4 / 5);
  expect_equal(plain, got);
}

TEST_F(BudgetTest, TheOptimizersStateIsPlannedForOnceItIsThere) {
  // the state is twice the weights: no small part of the limit
  const Case c{"gptsmall", {.batch = 8, .seq = 64, .depth = 2, .width = 128}};
  Trace plain, got;
  Steps(c, "adam").run(plain, 4);
  Steps steps(c, "adam");
  const auto traced = steps.profiled();
  Bytes state = 0;
  for (const auto& parameter : steps.training().parameters()) state += 2 * static_cast<Bytes>(parameter.nbytes());
  const Bytes limit = refrain::plan_step(traced, refrain::Budget::fraction(0.6), seconds(0.5)).peak() + state;
  MemoryBudget budget(Budget::bytes(limit));
  Bytes peak = 0;
  for (int i = 0; i < 4; ++i) {
    steps.training().zero_grad();
    const Bytes before = refrain::memory_stats().current;
    const auto choosing = refrain::budget::RoomMaker::get().policy_ns();
    peak = std::max(peak, before + steps.peak_of_backward(got));
    if (i > 0) {
      EXPECT_EQ(refrain::budget::RoomMaker::get().policy_ns(), choosing)
          << "step " << i << ": the cap had to make room";
    }
    steps.training().update(got);
  }
  EXPECT_LE(peak, limit);
  EXPECT_GT(peak, limit - limit / 16);
  const auto stats = budget.stats();
  EXPECT_EQ(stats.traced_steps, 1);
  EXPECT_EQ(stats.planned_steps, 3) << stats.first_mismatch;
  EXPECT_EQ(stats.replans, 1);
  expect_equal(plain, got);
}

TEST_F(BudgetTest, ABudgetNoPlanMeetsIsSaid) {
  Steps steps(kSmall);
  const auto traced = steps.profiled();
  const auto plan = refrain::plan_step(traced, refrain::Budget::bytes(1000), seconds(0.5));
  EXPECT_FALSE(plan.fits());
  EXPECT_GT(plan.peak(), 1000);
  EXPECT_LT(plan.peak(), traced.peak());
  EXPECT_NE(plan.brief().find("no plan found"), std::string::npos) << plan.brief();
}

TEST_F(BudgetTest, TheLeastTimeOfSeveralRunsIsTaken) {
  Steps steps(kSmall);
  int runs = 0;
  Trace ignored;
  const auto traced = refrain::profile(
      [&] {
        ++runs;
        steps.training().zero_grad();
        steps.training().backward(ignored);
      },
      refrain::ProfileOptions().runs(3).model("a small one"));
  EXPECT_EQ(runs, 3);
  EXPECT_GT(traced.operators_ms(), 0.0);
  traced.save(path("trace.json"));
  EXPECT_NE(content_of(path("trace.json")).find("a small one"), std::string::npos);
}

TEST_F(BudgetTest, BadInputSaysWhatWasFoundAndExpected) {
  for (const double fraction : {1.5, -0.1, std::numeric_limits<double>::quiet_NaN()}) {
    EXPECT_NE(refusal_of([&] { MemoryBudget budget(Budget::fraction(fraction)); }).find("expected 0.0"),
              std::string::npos);
    EXPECT_NE(
        refusal_of([&] { const refrain::MemoryCap cap(Budget::fraction(0.5)); }).find("found Budget::fraction(0.5)"),
        std::string::npos);
  }
  static_assert(!std::is_constructible_v<MemoryBudget, int> && !std::is_constructible_v<MemoryBudget, double>,
                "bytes or a fraction?");
  EXPECT_NE(refusal_of([&] { MemoryBudget budget(Budget::bytes(-5)); }).find("-5"), std::string::npos);
  EXPECT_NE(refusal_of([&] { StepTrace::load(path("none.json")); }).find("none.json"), std::string::npos);
  EXPECT_NE(refusal_of([&] { StepPlan::load(path("none.json")); }).find("none.json"), std::string::npos);
  EXPECT_NE(refusal_of([&] { StepTrace::load(path("")); }).find("cannot read"), std::string::npos);
  for (const char* garbage :
       {"", "garbage", "[1, 2", "{}", "[]", "null", R"({"kind": "plan"})",
        R"({"kind": "graph", "version": 1, "ops": [{}]})", R"({"kind": "graph", "version": 99})"}) {
    SCOPED_TRACE(garbage);
    const auto name = file("garbage.json", garbage);
    EXPECT_NE(refusal_of([&] { StepTrace::load(name); }).find("garbage.json"), std::string::npos);
    EXPECT_NE(refusal_of([&] { StepPlan::load(name); }).find("garbage.json"), std::string::npos);
  }
  EXPECT_NE(refusal_of([&] { refrain::profile([] {}, refrain::ProfileOptions().runs(0)); }).find("`runs` is 0"),
            std::string::npos);

  Steps steps(kSmall);
  const auto traced = steps.profiled();
  EXPECT_NE(refusal_of([&] { refrain::plan_step(traced, refrain::Budget::fraction(1.5)); }).find("1.5"),
            std::string::npos);
  EXPECT_NE(refusal_of([&] { refrain::plan_step(traced, refrain::Budget::bytes(-1)); }).find("-1"), std::string::npos);
  traced.save(path("trace.json"));
  const auto whole = content_of(path("trace.json"));
  for (const size_t kept : {whole.size() / 3, whole.size() - 3})
    EXPECT_NE(refusal_of([&] { StepTrace::load(file("cut.json", whole.substr(0, kept))); }).find("cut.json"),
              std::string::npos);
  EXPECT_ANY_THROW(traced.save("/no/such/folder/trace.json"));

  MemoryBudget budget(Budget::fraction(0.5));
  refusal_of([&] { MemoryBudget second(Budget::fraction(0.5)); });
  refusal_of([&] { refrain::profile([] {}); });
}

TEST_F(BudgetTest, AProfileAfterAnErrorWorks) {
  EXPECT_THROW(refrain::profile([] { throw std::runtime_error("a step"); }), std::runtime_error);
  Steps steps(kSmall);
  EXPECT_GT(steps.profiled().operators(), 100);
}

// What the batch is made from dies at once, so the batch itself cannot be computed again; all that comes from it can.
TEST_F(BudgetTest, ABatchMadeInTheStepHidesNothing) {
  torch::nn::Sequential model;
  for (int i = 0; i < 8; ++i) model->push_back(torch::nn::Linear(256, 256)), model->push_back(torch::nn::GELU());
  const auto step = [&] {
    model->zero_grad();
    auto text = torch::randn({1024, 257});
    const auto batch = text.narrow(1, 0, 256).contiguous();
    text.reset();
    model->forward(batch).pow(2).mean().backward();
  };
  const auto gradients = [&] {
    Trace trace;
    for (const auto& item : model->named_parameters()) trace.emplace_back(item.key(), digest_of(item.value().grad()));
    return trace;
  };
  torch::manual_seed(1);
  step();
  const auto plain = gradients();
  model->zero_grad();
  const auto traced = refrain::profile(step);
  model->zero_grad();
  const Bytes level = refrain::memory_stats().current;
  for (const double fraction : {0.5, 0.0}) {
    SCOPED_TRACE(fraction);
    const auto plan = refrain::plan_step(traced, refrain::Budget::fraction(fraction), seconds(0.5));
    torch::manual_seed(1);
    {
      MemoryBudget budget(plan);
      refrain::reset_peak_memory();
      step();
      EXPECT_EQ(refrain::memory_stats().peak, plan.peak());
      EXPECT_EQ(budget.stats().planned_steps, 1) << budget.stats().first_mismatch;
    }
    expect_equal(plain, gradients());
    model->zero_grad();
    if (fraction == 0.0) {
      EXPECT_LT(plan.peak() - level, (traced.peak() - level) / 3);
    }
  }
}

// To recompute it would hold what it was computed from, which is gone in a plain run.
TEST_F(BudgetTest, WhatOutlivesItsSourceStaysResident) {
  const auto w = torch::randn({64, 64}).requires_grad_();
  auto batch = torch::randn({64, 64});
  const auto traced = refrain::profile([&] {
    const auto first = batch.mul(3);
    batch.reset();
    first.mul(w).sin().sum().backward();
  });
  const auto& graph = traced.state().graph;
  std::vector<bool> evictable;
  for (const auto& op : graph.ops)
    if (op.name.starts_with("aten::mul."))
      evictable.push_back(graph.values[static_cast<size_t>(op.outputs.at(0))].evictable);
  ASSERT_GE(evictable.size(), 2U);
  EXPECT_FALSE(evictable[0]);
  EXPECT_TRUE(evictable[1]);
}

// What the caller keeps is recomputed by the plan, not when the caller reads it.
TEST_F(BudgetTest, WhatOutlivesTheStepIsThereAtItsEnd) {
  const auto w = torch::randn({256, 256}).requires_grad_();
  const auto batch = torch::randn({256, 256});
  Tensor kept;
  const auto step = [&] {
    auto x = batch.mm(w);
    for (int i = 0; i < 6; ++i) {
      x = x.mul(1.1).tanh().mm(w).sin();
      if (i == 3) kept = x.detach().exp();
    }
    x.sum().backward();
  };
  step();
  const auto expected = digest_of(kept);
  const auto plan = refrain::plan_step(refrain::profile(step), Budget::fraction(0.2), seconds(0.5));
  const auto& at_end = plan.state().plan.schedule.places.back();
  ASSERT_TRUE(std::any_of(at_end.begin(), at_end.end(),
                          [](const auto& action) { return action.kind == refrain::graph::Action::Kind::kRecompute; }));
  MemoryBudget budget(plan);
  step();
  EXPECT_EQ(budget.stats().planned_steps, 1) << budget.stats().first_mismatch;
  EXPECT_EQ(evicted_bytes(), 0);
  EXPECT_EQ(digest_of(kept), expected);
}

TEST_F(BudgetTest, NothingIsLeftBehind) {
  Steps steps(kSmall);
  Trace trace;
  steps.run(trace, 1);
  flush_engine();
  const auto before = live();
  const Bytes bytes = refrain::memory_stats().current;
  {
    MemoryBudget budget(Budget::fraction(0.2));
    steps.run(trace, 3);
  }
  flush_engine();
  EXPECT_EQ(live(), before);
  EXPECT_EQ(refrain::memory_stats().current, bytes);
}

}  // namespace
}  // namespace refrain_test
