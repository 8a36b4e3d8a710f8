#include <torch/torch.h>

#include "refrain/memory_budget.h"
#include "refrain/offload.h"
#include "refrain/selective.h"
#include "tests/budget/cap_support.h"

/// Programs that a plan has to take as they are: regions of all kinds in a step, sparse gradients, writes through masks.
namespace refrain_test {
namespace {

refrain::PlanOptions seconds(double most) {
  return refrain::PlanOptions().time_limit(std::chrono::duration<double>(most));
}

using refrain::Bytes;
using refrain::CheckpointOptions;
using refrain::MemoryBudget;
using refrain::RecomputeMode;

CheckpointOptions rerun() { return CheckpointOptions().recompute_mode(RecomputeMode::kRerunFunction); }

/// A small net, and a step of it that a test gives.
struct Program {
  const char* name;
  std::function<Tensor(struct Net&, const CheckpointOptions&)> loss;
};
void PrintTo(const Program& program, std::ostream* out) { *out << program.name; }

struct Net {
  Net() {
    torch::manual_seed(0);
    w = torch::randn({64, 64}).requires_grad_();
    v = torch::randn({64, 64}).requires_grad_();
    block = torch::nn::Sequential(torch::nn::Linear(64, 256), torch::nn::GELU(), torch::nn::Dropout(0.3),
                                  torch::nn::Linear(256, 64));
    norm = torch::nn::Sequential(torch::nn::Linear(64, 64), torch::nn::BatchNorm1d(64), torch::nn::ReLU());
    lstm = torch::nn::LSTM(torch::nn::LSTMOptions(64, 64).batch_first(true));
    x = torch::randn({64, 64});
  }
  std::vector<Tensor> state() {
    std::vector<Tensor> all{w, v};
    for (const std::shared_ptr<torch::nn::Module>& module :
         std::initializer_list<std::shared_ptr<torch::nn::Module>>{block.ptr(), norm.ptr(), lstm.ptr()}) {
      for (const auto& p : module->parameters()) all.push_back(p);
      for (const auto& b : module->buffers()) all.push_back(b);
    }
    return all;
  }
  void clear() {
    for (auto& t : state())
      if (t.requires_grad()) t.mutable_grad() = Tensor();
  }

  Tensor w, v, x;
  torch::nn::Sequential block{nullptr}, norm{nullptr};
  torch::nn::LSTM lstm{nullptr};
};

const Program kPrograms[] = {
    {"one_region",
     [](Net& n, const CheckpointOptions& o) {
       return refrain::checkpoint(
                  o, [&](Tensor t) { return t.mm(n.w).sin().mm(n.v); }, n.x)
           .sum();
     }},
    {"a_module", [](Net& n, const CheckpointOptions& o) { return refrain::checkpoint(o, n.block, n.x).sum(); }},
    {"two_in_a_row",
     [](Net& n, const CheckpointOptions& o) {
       return refrain::checkpoint(o, n.block, refrain::checkpoint(o, n.block, n.x)).sum();
     }},
    {"region_then_more",
     [](Net& n, const CheckpointOptions& o) { return n.block->forward(refrain::checkpoint(o, n.block, n.x)).sum(); }},
    {"more_then_region",
     [](Net& n, const CheckpointOptions& o) {
       return refrain::checkpoint(o, n.block, n.block->forward(n.x)).pow(2).sum();
     }},
    {"a_view_at_the_end",
     [](Net& n, const CheckpointOptions& o) {
       return refrain::checkpoint(
                  o,
                  [&](Tensor t) {
                    return t.mm(n.w).reshape({32, 128});
                  },
                  n.x)
           .square()
           .sum();
     }},
    {"log_softmax",
     [](Net& n, const CheckpointOptions& o) {
       return refrain::checkpoint(
                  o, [&](Tensor t) { return t.mm(n.w).log_softmax(1); }, n.x)
           .sum();
     }},
    {"lstm",
     [](Net& n, const CheckpointOptions& o) {
       return std::get<0>(refrain::checkpoint(o, n.lstm, n.x.view({2, 32, 64}))).sum();
     }},
    {"batch_norm",
     [](Net& n, const CheckpointOptions& o) {
       return refrain::checkpoint(o, n.norm, refrain::checkpoint(o, n.norm, n.x)).sin().sum();
     }},
    {"nested",
     [](Net& n, const CheckpointOptions& o) {
       const auto inner = [&](const Tensor& t) { return refrain::checkpoint(o, n.block, t); };
       return refrain::checkpoint(
                  o, [&, inner](Tensor t) { return inner(inner(t).tanh()); }, n.x)
           .sum();
     }},
    {"both_sources",
     [](Net& n, const CheckpointOptions&) {
       const auto a = refrain::checkpoint(n.block, n.x);
       const auto b = refrain::checkpoint(rerun(), n.block, a);
       return refrain::checkpoint(n.norm, b + a).sum();
     }},
    {"an_input_overwritten",
     [](Net& n, const CheckpointOptions& o) {
       auto h = n.x.mul(2);
       const auto f = [&](Tensor a) { return (a + 1).mm(n.w).sin(); };
       const auto y = refrain::checkpoint(o, f, h);
       if (o.recompute_mode() == RecomputeMode::kReplayOperators) h.mul_(0.5);
       return (y + refrain::checkpoint(o, f, h)).sum();
     }},
    {"an_input_replaced",
     [](Net& n, const CheckpointOptions& o) {
       auto h = n.x.mul(2);
       const auto f = [&](Tensor a) { return (a + 1).mm(n.w).sin(); };
       const auto y = refrain::checkpoint(o, f, h);
       h = h.mul(0.5);
       return (y + refrain::checkpoint(o, f, h)).sum();
     }},
    {"wide_values_outside",
     [](Net& n, const CheckpointOptions& o) {
       auto h = n.x;
       for (int i = 0; i < 4; ++i) h = refrain::checkpoint(o, n.block, h.mm(n.w).div(64).sin().exp().mul(0.5).tanh());
       return h.sum();
     }},
};

struct Kind {
  const char* name;
  std::function<CheckpointOptions()> options;
};
void PrintTo(const Kind& kind, std::ostream* out) { *out << kind.name; }

const Kind kKinds[] = {
    {"replay", [] { return CheckpointOptions(); }},
    {"rerun", [] { return rerun(); }},
    {"policy",
     [] {
       return CheckpointOptions().policy(refrain::save_ops({"aten::addmm", "aten::mm"}));
     }},
    {"recompute_all", [] { return CheckpointOptions().policy(refrain::nothing_saveable()); }},
    {"offload", [] { return CheckpointOptions().policy(refrain::offload_larger_than(1)); }},
    {"inputs_offloaded", [] { return CheckpointOptions().offload_to_cpu(true); }},
};

using Case = std::tuple<Program, Kind>;
class BudgetRegionsTest : public testing::TestWithParam<Case> {};
class BudgetRegionsPeakTest : public testing::TestWithParam<Case> {};

std::vector<std::string> bits(Net& net, const Tensor& loss) {
  std::vector<std::string> all{bits_of(loss)};
  for (const auto& t : net.state()) {
    all.push_back(bits_of(t));
    all.push_back(bits_of(t.grad()));
  }
  all.push_back(bits_of(at::detail::getDefaultCPUGenerator().get_state()));
  return all;
}

TEST_P(BudgetRegionsTest, StepsArePlannedAndEqualToTheBit) {
  refrain::install_memory_tracking();
  const auto& [program, kind] = GetParam();
  const auto run = [&](Net& net, const CheckpointOptions& options) {
    net.clear();
    auto loss = program.loss(net, options);
    loss.backward();
    return loss.detach();
  };
  constexpr int kSteps = 4;
  std::vector<std::vector<std::string>> expected;
  {
    Net net;
    const refrain::NoCheckpointGuard baseline;
    for (int i = 0; i < kSteps; ++i) expected.push_back(bits(net, run(net, kind.options())));
  }
  for (const double fraction : {1.0, 0.0}) {
    SCOPED_TRACE(fraction);
    Net net;
    const auto options = kind.options();
    MemoryBudget budget(refrain::Budget::fraction(fraction));
    for (int i = 0; i < kSteps; ++i) {
      const auto got = bits(net, run(net, options));
      ASSERT_EQ(got.size(), expected[static_cast<size_t>(i)].size());
      for (size_t k = 0; k < got.size(); ++k)
        EXPECT_TRUE(got[k] == expected[static_cast<size_t>(i)][k]) << "step " << i << ", tensor " << k;
    }
    const auto stats = budget.stats();
    EXPECT_EQ(stats.mismatched_steps, 0) << stats.first_mismatch;
    EXPECT_EQ(stats.traced_steps, 1);
    EXPECT_EQ(stats.planned_steps, kSteps - 1);
  }
}

TEST_P(BudgetRegionsPeakTest, ThePeakIsAtMostThePlans) {
  refrain::install_memory_tracking();
  const auto& [program, kind] = GetParam();
  Net net;
  const auto options = kind.options();
  const auto step = [&] {
    net.clear();
    program.loss(net, options).backward();
  };
  step();
  step();
  net.clear();
  const auto trace = refrain::profile(step);
  const auto plan = refrain::plan_step(trace, refrain::Budget::fraction(0.0), seconds(0.2));
  MemoryBudget budget(plan);
  for (int i = 0; i < 2; ++i) {
    net.clear();
    refrain::reset_peak_memory();
    program.loss(net, options).backward();
    EXPECT_LE(refrain::memory_stats().peak, plan.peak()) << plan.brief();
  }
  EXPECT_EQ(budget.stats().planned_steps, 2) << budget.stats().first_mismatch;
}

std::vector<Case> cases(const std::function<bool(const std::string& program, const std::string& kind)>& with) {
  std::vector<Case> all;
  for (const auto& program : kPrograms)
    for (const auto& kind : kKinds)
      if (with(program.name, kind.name)) all.emplace_back(program, kind);
  return all;
}

std::string name_of(const testing::TestParamInfo<Case>& info) {
  return std::string(std::get<0>(info.param).name) + "_" + std::get<1>(info.param).name;
}

// A function that is called again moves the statistics of BatchNorm twice, which is what that source does.
INSTANTIATE_TEST_SUITE_P(All, BudgetRegionsTest, testing::ValuesIn(cases([](const auto& program, const auto& kind) {
                           return program != "batch_norm" || kind != "rerun";
                         })),
                         name_of);
// Stores copy on threads of their own: when their bytes are freed differs from run to run.
INSTANTIATE_TEST_SUITE_P(All, BudgetRegionsPeakTest, testing::ValuesIn(cases([](const auto&, const auto& kind) {
                           return kind != "offload" && kind != "inputs_offloaded";
                         })),
                         name_of);

// A plan may recompute less, or other things, than the region would.
TEST(BudgetRegions, ThePlanChoosesForARegion) {
  refrain::install_memory_tracking();
  Net net;
  const auto step = [&] {
    net.clear();
    refrain::checkpoint(net.block, refrain::checkpoint(net.block, net.x)).sum().backward();
  };
  step();
  refrain::reset_tape_counters();
  {
    MemoryBudget budget(refrain::Budget::fraction(1.0));
    for (int i = 0; i < 3; ++i) step();
    EXPECT_EQ(budget.stats().planned_steps, 2);
    EXPECT_EQ(refrain::tape_stats().replayed_ops, 0) << "the budget has room for everything";
  }
  {
    MemoryBudget budget(refrain::Budget::fraction(0.0));
    for (int i = 0; i < 3; ++i) step();
    EXPECT_EQ(budget.stats().planned_steps, 2);
    EXPECT_GT(refrain::tape_stats().replayed_ops, 0);
  }
  EXPECT_FALSE(refrain::is_checkpointing());
}

TEST(BudgetRegions, AFunctionSeesThatItIsInARegion) {
  refrain::install_memory_tracking();
  const MemoryBudget budget(refrain::Budget::fraction(0.5));
  const auto x = torch::randn({8, 8}).requires_grad_();
  bool inside = false;
  refrain::checkpoint(
      [&](Tensor t) {
        inside = refrain::is_checkpointing();
        return t.sin();
      },
      x)
      .sum()
      .backward();
  EXPECT_TRUE(inside);
  EXPECT_FALSE(refrain::is_checkpointing());
}

/// Steps of `make_step`, with and without a budget: the same tensors after each.
void expect_budget_is_right(const std::function<std::function<Tensors()>()>& make_step, double fraction) {
  SCOPED_TRACE(fraction);
  refrain::install_memory_tracking();
  constexpr int kSteps = 5;
  std::vector<std::vector<std::string>> expected;
  const auto run = [&](const std::function<Tensors()>& step) {
    std::vector<std::string> all;
    for (const auto& t : step()) all.push_back(t.defined() && t.layout() == at::kStrided ? bits_of(t) : bytes_of(t));
    return all;
  };
  {
    torch::manual_seed(3);
    const auto step = make_step();
    for (int i = 0; i < kSteps; ++i) expected.push_back(run(step));
  }
  torch::manual_seed(3);
  const auto step = make_step();
  MemoryBudget budget(refrain::Budget::fraction(fraction));
  for (int i = 0; i < kSteps; ++i) EXPECT_TRUE(run(step) == expected[static_cast<size_t>(i)]) << "step " << i;
  EXPECT_GT(budget.stats().planned_steps, 0) << budget.stats().first_mismatch;
}

TEST(BudgetPrograms, SparseGradients) {
  for (const bool twice : {false, true})
    for (const bool optimizer : {false, true})
      for (const double fraction : {0.0, 0.5}) {
        SCOPED_TRACE(twice);
        expect_budget_is_right(
            [=] {
              auto e = std::make_shared<torch::nn::Embedding>(torch::nn::EmbeddingOptions(200, 32).sparse(true));
              auto sgd = std::make_shared<torch::optim::SGD>((*e)->parameters(), 0.1);
              const auto i = torch::randint(0, 200, {64});
              return [=]() -> Tensors {
                sgd->zero_grad();
                auto h = (*e)(i).sin();
                if (twice) h = h.exp() * (*e)(i).tanh();
                h.square().mean().backward();
                const auto grad = (*e)->weight.grad().coalesce();
                Tensors all{grad.indices().clone(), grad.values().clone()};
                if (optimizer) sgd->step();
                all.push_back((*e)->weight.detach().clone());
                return all;
              };
            },
            fraction);
      }
}

TEST(BudgetPrograms, SparseTensorsInForward) {
  for (const double fraction : {0.0, 0.5})
    expect_budget_is_right(
        [] {
          const auto w = torch::randn({64, 32}).requires_grad_();
          const auto at = torch::randint(0, 64, {2, 100});
          return [=]() -> Tensors {
            w.mutable_grad() = Tensor();
            const auto values = w.flatten().slice(0, 0, 100).mul(2).exp();
            const auto s = torch::sparse_coo_tensor(at, values.detach() * 1.5, {64, 64}).coalesce();
            auto h = s.mm(w.sin().exp());
            const auto csr = s.to_sparse_csr();
            h = h + csr.matmul(w.cos().exp());
            auto written = torch::sparse_coo_tensor(at, values.detach() * 0.5, {64, 64});
            const auto before = written._values() * 3;
            written.mul_(2);
            const auto loss = h.square().mean() + before.sum() + (written._values() * 3).sum();
            loss.backward();
            return {loss.detach(), w.grad().clone()};
          };
        },
        fraction);
}

TEST(BudgetPrograms, WritesThroughMasks) {
  for (int what = 0; what < 6; ++what)
    for (const double fraction : {0.0, 0.3, 0.7}) {
      SCOPED_TRACE(what);
      expect_budget_is_right(
          [what] {
            return [what]() -> Tensors {
              torch::manual_seed(1);
              auto w = torch::randn({4, 32, 16}).requires_grad_();
              auto mask = torch::rand({4, 32}) > 0.5;
              Tensor l;
              {
                auto h = w * 1.0;
                auto k = h.exp().add(1.0);
                if (what != 1) k.index_put_({mask}, torch::zeros({}));
                auto m = k.index({mask.logical_not()});
                auto r = k * k.sum(-1, true);
                m = m.sigmoid();
                auto o = what == 2 ? r.sum() : r.sum() + m.pow(3).sum();
                if (what != 3) h.index_put_({mask}, 0.25);
                auto kept = h.index({mask.logical_not()}).sin();
                h.reset();
                l = what == 4 ? o : o + kept.pow(2).sum();
              }
              auto copy = what == 5 ? Tensor() : l.detach().clone();
              l.backward();
              return {w.grad().detach().clone()};
            };
          },
          fraction);
    }
}

}  // namespace
}  // namespace refrain_test
