#include <map>

#include "tests/train/ranks.h"

namespace {

using namespace refrain_test;
using namespace refrain::literals;
using refrain::CheckpointOptions;
using refrain::DataParallel;
using refrain::DataParallelOptions;
using refrain::DistributedError;
using refrain::InvalidArgument;
using refrain::ProcessGroup;
using refrain::RecomputeMode;
using torch::Tensor;
using Tensors = std::vector<Tensor>;

constexpr int64_t kWidth = 8, kRows = 4;

enum class How { kPlain, kReplay, kRerun };
constexpr How kAll[] = {How::kPlain, How::kReplay, How::kRerun};

/// A block, run three times with the same weights, between two layers.
struct SharedNetImpl : torch::nn::Module {
  explicit SharedNetImpl(How source) : how(source) {
    first = register_module("first", torch::nn::Linear(kWidth, kWidth));
    block = register_module("block", torch::nn::Sequential(torch::nn::Linear(kWidth, 2 * kWidth), torch::nn::Tanh(),
                                                           torch::nn::Linear(2 * kWidth, kWidth)));
    last = register_module("last", torch::nn::Linear(kWidth, 1));
  }
  Tensor forward(Tensor x) {
    x = first(x);
    for (int i = 0; i < 3; ++i) x = x + run_block(x);
    return last(x);
  }
  Tensor run_block(const Tensor& x) {
    if (how == How::kPlain) return block->forward(x);
    const auto source = how == How::kRerun ? RecomputeMode::kRerunFunction : RecomputeMode::kReplayOperators;
    return refrain::checkpoint(CheckpointOptions().recompute_mode(source), block, x);
  }

  How how;
  torch::nn::Linear first{nullptr}, last{nullptr};
  torch::nn::Sequential block{nullptr};
};
TORCH_MODULE(SharedNet);

SharedNet make_net(How how = How::kPlain, uint64_t seed = 1) {
  torch::manual_seed(seed);
  return SharedNet(how);
}

/// The rows of the whole job; a rank's share of them.
Tensor joined_batch(int64_t ranks) {
  torch::manual_seed(99);
  return torch::randn({ranks * kRows, kWidth});
}
Tensor share_of(const Tensor& batch, const ProcessGroup& group) {
  return batch.chunk(group.size())[static_cast<size_t>(group.rank())];
}

Tensors gradients(const torch::nn::Module& module) {
  Tensors all;
  for (const auto& p : module.parameters()) all.push_back(p.grad().defined() ? p.grad().clone() : Tensor());
  return all;
}

void expect_equal(const Tensors& expected, const Tensors& actual, const char* what) {
  ASSERT_EQ(expected.size(), actual.size());
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(torch::equal(expected[i], actual[i])) << what << " " << i;
}

/// A sum of n products in another order differs by at most about n * epsilon of the sum of their magnitudes; n is the
/// number of rows of the joined batch times three uses of the block, and no gradient here cancels by more than that.
void expect_close(const Tensors& expected, const Tensors& actual, int64_t rows) {
  ASSERT_EQ(expected.size(), actual.size());
  const double tolerance = 3.0 * static_cast<double>(rows) * std::numeric_limits<float>::epsilon();
  for (size_t i = 0; i < expected.size(); ++i) {
    const double error = (expected[i] - actual[i]).abs().max().item<double>();
    EXPECT_LE(error, tolerance * expected[i].abs().max().item<double>()) << "gradient " << i;
  }
}

Tensors gradients_of_joined_batch(int64_t ranks) {
  auto net = make_net();
  net(joined_batch(ranks)).square().mean().backward();
  return gradients(*net);
}

int64_t gradient_bytes(const torch::nn::Module& module) {
  int64_t bytes = 0;
  for (const auto& p : module.parameters()) bytes += static_cast<int64_t>(p.nbytes());
  return bytes;
}

/// Ranks of 2 and of 4.
class DataParallelTest : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, DataParallelTest, testing::Values(2, 4));

TEST_P(DataParallelTest, GradientsAreThoseOfTheJoinedBatch) {
  for (const How how : kAll) {
    run_ranks(GetParam(), [&](const ProcessGroup& group) {
      auto net = make_net(how);
      DataParallel model(net, group);
      model(share_of(joined_batch(group.size()), group)).square().mean().backward();
      expect_close(gradients_of_joined_batch(group.size()), gradients(*net), group.size() * kRows);
    });
  }
}

TEST_P(DataParallelTest, RegionsChangeNoBit) {
  for (const bool as_view : {false, true}) {
    run_ranks(GetParam(), [&](const ProcessGroup& group) {
      const auto train = [&](How how) {
        auto net = make_net(how);
        // buckets of some parameters each, so that their order matters
        const auto small = DataParallelOptions().bucket_cap(512).first_bucket_cap(64);
        DataParallel model(net, group, DataParallelOptions(small).gradient_as_bucket_view(as_view));
        torch::optim::SGD sgd(net->parameters(), 0.1);
        Tensors seen;
        for (int step = 0; step < 3; ++step) {
          net->zero_grad();
          auto loss = model(share_of(joined_batch(group.size()) * (step + 1), group)).square().mean();
          loss.backward();
          seen.push_back(loss.detach());
          for (auto& gradient : gradients(*net)) seen.push_back(gradient);
          sgd.step();
        }
        EXPECT_GT(model.stats().buckets, 3 * 2);
        return seen;
      };
      const auto plain = train(How::kPlain);
      expect_equal(plain, train(How::kReplay), "replay");
      expect_equal(plain, train(How::kRerun), "rerun");
    });
  }
}

TEST_P(DataParallelTest, EachGradientIsReducedOnceAndHooksFireOnce) {
  for (const How how : kAll) {
    run_ranks(GetParam(), [&](const ProcessGroup& group) {
      auto net = make_net(how);
      DataParallel model(net, group);
      std::map<std::string, int> fired;
      for (auto& item : net->named_parameters()) {
        item.value().register_hook([&fired, name = item.key()](const Tensor&) { ++fired[name]; });
      }
      for (int step = 1; step <= 3; ++step) {
        model(share_of(joined_batch(group.size()), group)).square().mean().backward();
        EXPECT_EQ(model.stats().bytes, step * gradient_bytes(*net));
        for (const auto& item : net->named_parameters()) EXPECT_EQ(fired[item.key()], step) << item.key();
      }
    });
  }
}

TEST(DataParallel, TheWholeModelInARegion) {
  for (const auto source : {RecomputeMode::kReplayOperators, RecomputeMode::kRerunFunction}) {
    run_ranks(2, [&](const ProcessGroup& group) {
      auto net = make_net();
      DataParallel model(net, group);
      const auto forward = [&](const Tensor& x) { return model(x); };
      for (int step = 1; step <= 2; ++step) {
        net->zero_grad();
        const auto share = share_of(joined_batch(2), group);
        refrain::checkpoint(CheckpointOptions().recompute_mode(source), forward, share).square().mean().backward();
        expect_close(gradients_of_joined_batch(2), gradients(*net), 2 * kRows);
        EXPECT_EQ(model.stats().bytes, step * gradient_bytes(*net));
      }
    });
  }
}

TEST(DataParallel, ARegionAroundItsForwardRunsAgainAfterFirstGradientsAreReady) {
  for (const auto source : {RecomputeMode::kReplayOperators, RecomputeMode::kRerunFunction}) {
    run_ranks(2, [&](const ProcessGroup& group) {
      auto net = make_net();
      DataParallel model(net, group, DataParallelOptions().bucket_cap(1).first_bucket_cap(1));
      const auto body = [&](const Tensor& x) { return net->block->forward(net->first(x)); };
      const auto forward = [&](const Tensor& x) { return model.run(body, x); };
      for (int step = 1; step <= 2; ++step) {
        net->zero_grad();
        const auto share = share_of(joined_batch(2), group);
        net->last(refrain::checkpoint(CheckpointOptions().recompute_mode(source), forward, share))
            .square()
            .mean()
            .backward();
        auto joined = make_net();
        joined->last(joined->block->forward(joined->first(joined_batch(2)))).square().mean().backward();
        expect_close(gradients(*joined), gradients(*net), 2 * kRows);
        EXPECT_EQ(model.stats().bytes, step * gradient_bytes(*net));
      }
    });
  }
}

TEST(DataParallel, StartsFromRankZero) {
  run_ranks(2, [](const ProcessGroup& group) {
    const auto rank = static_cast<uint64_t>(group.rank());
    torch::nn::BatchNorm1d norm(1);
    norm->running_mean.fill_(group.rank());
    torch::nn::Sequential net(make_net(How::kPlain, rank), norm);
    DataParallel model(net, group);
    const auto expected = make_net(How::kPlain, 0)->parameters();
    for (size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(torch::equal(net->parameters()[i], expected[i]));
    EXPECT_EQ(norm->running_mean.item<float>(), 0);
  });
}

/// Statistics of one process that sees these batches.
Tensors statistics_after(const Tensors& batches) {
  torch::nn::BatchNorm1d norm(kWidth);
  for (const auto& batch : batches) norm(batch);
  return norm->buffers();
}

TEST(DataParallel, BatchNormBuffers) {
  run_ranks(2, [](const ProcessGroup& group) {
    const auto batch = [](int64_t rank, int64_t step) {
      torch::manual_seed(static_cast<uint64_t>(10 * step + rank));
      return torch::randn({kRows, kWidth});
    };
    for (const bool broadcast : {true, false}) {
      for (const bool in_region : {true, false}) {
        torch::nn::BatchNorm1d norm(kWidth);
        DataParallel model(norm, group, DataParallelOptions().broadcast_buffers(broadcast));
        for (int64_t step = 0; step < 2; ++step) {
          const auto forward = [&](const Tensor& x) { return in_region ? refrain::checkpoint(norm, x) : norm(x); };
          model.run(forward, batch(group.rank(), step)).square().sum().backward();
        }
        // broadcast: rank 0's statistics, then this rank's share of the last step
        const auto expected = statistics_after({batch(broadcast ? 0 : group.rank(), 0), batch(group.rank(), 1)});
        expect_equal(expected, norm->buffers(), broadcast ? "broadcast buffer" : "own buffer");
      }
    }
  });
}

TEST_P(DataParallelTest, NoSyncAddsUpLocally) {
  run_ranks(GetParam(), [](const ProcessGroup& group) {
    for (const How how : kAll) {
      auto net = make_net(how);
      DataParallel model(net, group);
      const auto micro = share_of(joined_batch(group.size()), group).chunk(4);
      for (int step = 1; step <= 2; ++step) {
        net->zero_grad();
        {
          const auto pause = model.no_sync();
          for (size_t i = 0; i < 3; ++i) (model(micro[i]).square().mean() / 4).backward();
        }
        EXPECT_EQ(model.stats().bytes, (step - 1) * gradient_bytes(*net));
        (model(micro[3]).square().mean() / 4).backward();
        EXPECT_EQ(model.stats().bytes, step * gradient_bytes(*net));
        expect_close(gradients_of_joined_batch(group.size()), gradients(*net), group.size() * kRows);
      }
    }
  });
}

TEST(DataParallel, NoSyncNests) {
  run_ranks(2, [](const ProcessGroup& group) {
    auto net = make_net();
    DataParallel model(net, group);
    const auto step = [&] { model(share_of(joined_batch(2), group)).sum().backward(); };
    {
      const auto outer = model.no_sync();
      { const auto inner = model.no_sync(); }
      step();
      EXPECT_EQ(model.stats().buckets, 0);
    }
    step();
    EXPECT_GT(model.stats().buckets, 0);
  });
}

/// Uses one of two layers, by the sign of the first number; also returns something that no loss reads.
struct BranchNetImpl : torch::nn::Module {
  BranchNetImpl() {
    even = register_module("even", torch::nn::Linear(kWidth, 1));
    odd = register_module("odd", torch::nn::Linear(kWidth, 1));
    side = register_module("side", torch::nn::Linear(kWidth, 1));
  }
  std::tuple<Tensor, Tensor> forward(const Tensor& x, bool use_odd) {
    return {refrain::checkpoint(use_odd ? odd : even, x), side(x)};
  }
  torch::nn::Linear even{nullptr}, odd{nullptr}, side{nullptr};
};
TORCH_MODULE(BranchNet);

TEST(DataParallel, FindsUnusedParameters) {
  run_ranks(2, [](const ProcessGroup& group) {
    torch::manual_seed(1);
    BranchNet net;
    DataParallel model(net, group, DataParallelOptions().find_unused_parameters(true));
    const auto x = torch::ones({kRows, kWidth});
    for (int step = 0; step < 3; ++step) {
      net->zero_grad();
      const bool use_odd = group.rank() == 1 && step == 1;
      std::get<0>(model(x, use_odd)).sum().backward();
      // one of two ranks used each layer in step 1; both used `even` in the others
      const double share = step == 1 ? 0.5 : 1.0;
      EXPECT_TRUE(torch::equal(net->even->weight.grad(), torch::full({1, kWidth}, share * kRows)));
      EXPECT_EQ(net->odd->weight.grad().defined(), step == 1);
      if (step == 1) {
        EXPECT_TRUE(torch::equal(net->odd->weight.grad(), torch::full({1, kWidth}, 0.5 * kRows)));
      }
      EXPECT_FALSE(net->side->weight.grad().defined());
    }
  });
}

TEST(DataParallel, NamesParametersThatGotNoGradient) {
  run_ranks(2, [](const ProcessGroup& group) {
    BranchNet net;
    DataParallel model(net, group);
    const auto step = [&] { std::get<0>(model(torch::ones({kRows, kWidth}), false)).sum().backward(); };
    step();
    expect_has(
        message_of<InvalidArgument>(step),
        {"[refrain::DataParallel]", "odd.weight, odd.bias, side.weight, side.bias", "find_unused_parameters(true)"});
  });
}

TEST_P(DataParallelTest, StaticGraph) {
  run_ranks(GetParam(), [](const ProcessGroup& group) {
    for (const How how : kAll) {
      const auto train = [&](const DataParallelOptions& options) {
        auto net = make_net(how);
        net->register_parameter("unused", torch::zeros({3}));
        DataParallel model(net, group, options);
        Tensors seen;
        for (int step = 1; step <= 3; ++step) {
          net->zero_grad();
          model(share_of(joined_batch(group.size()), group)).square().mean().backward();
          for (const auto& gradient : gradients(*net)) {
            if (gradient.defined()) seen.push_back(gradient);
          }
        }
        return seen;
      };
      const auto small = DataParallelOptions().bucket_cap(512).first_bucket_cap(64);
      const auto expected = train(DataParallelOptions(small).find_unused_parameters(true));
      const auto seen = train(DataParallelOptions(small).static_graph(true));
      ASSERT_EQ(seen.size(), expected.size());
      for (size_t i = 0; i < seen.size(); ++i) EXPECT_TRUE(torch::allclose(seen[i], expected[i], 1e-5, 1e-7)) << i;
    }
  });
}

TEST(DataParallel, ReductionBeginsBeforeBackwardEnds) {
  run_ranks(2, [](const ProcessGroup& group) {
    auto net = make_net(How::kReplay);
    DataParallel model(net, group, DataParallelOptions().bucket_cap(1).first_bucket_cap(1));
    const auto count = static_cast<int64_t>(net->parameters().size());
    int64_t before_last = 0;
    net->first->weight.register_hook([&](const Tensor&) { before_last = model.stats().buckets; });
    for (int step = 0; step < 2; ++step) {
      const int64_t before = model.stats().buckets;
      model(share_of(joined_batch(2), group)).sum().backward();
      EXPECT_GE(before_last - before, count - 2);  // all but those of the first layer
      EXPECT_EQ(model.stats().buckets - before, count);
    }
  });
}

TEST(DataParallel, BucketsAreRebuiltOnceUnlessAskedNotTo) {
  run_ranks(2, [](const ProcessGroup& group) {
    for (const bool rebuild : {true, false}) {
      auto net = make_net();
      DataParallel model(net, group, DataParallelOptions().rebuild_buckets(rebuild));
      for (int step = 0; step < 3; ++step) model(share_of(joined_batch(2), group)).sum().backward();
      EXPECT_EQ(model.stats().rebuilds, rebuild ? 1 : 0);
    }
  });
}

TEST(DataParallel, GradientsAsViewsOfBuckets) {
  run_ranks(2, [](const ProcessGroup& group) {
    for (const bool as_view : {true, false}) {
      auto net = make_net();
      DataParallel model(net, group, DataParallelOptions().gradient_as_bucket_view(as_view));
      model(share_of(joined_batch(2), group)).square().mean().backward();
      EXPECT_EQ(net->first->weight.grad().is_alias_of(net->last->weight.grad()), as_view);
      expect_close(gradients_of_joined_batch(2), gradients(*net), 2 * kRows);
    }
  });
}

TEST(DataParallel, FrozenAndSharedParameters) {
  run_ranks(2, [](const ProcessGroup& group) {
    auto net = make_net();
    net->last->weight.set_requires_grad(false);
    net->register_module("again", net->first.ptr());
    DataParallel model(net, group);
    model(share_of(joined_batch(2), group)).square().mean().backward();
    EXPECT_FALSE(net->last->weight.grad().defined());
    EXPECT_EQ(model.stats().bytes,
              gradient_bytes(*net) - static_cast<int64_t>(net->last->weight.nbytes()) - gradient_bytes(*net->first));
  });
}

TEST(DataParallel, SparseGradients) {
  run_ranks(2, [](const ProcessGroup& group) {
    torch::nn::Embedding table(torch::nn::EmbeddingOptions(5, 2).sparse(true));
    DataParallel model(table, group);
    for (int step = 0; step < 2; ++step) {
      table->zero_grad();
      model(torch::tensor({group.rank(), int64_t{3}})).sum().backward();
      ASSERT_TRUE(table->weight.grad().is_sparse());
      const auto expected = torch::tensor({{.5, .5}, {.5, .5}, {0., 0.}, {1., 1.}, {0., 0.}}, torch::kFloat);
      EXPECT_TRUE(torch::equal(table->weight.grad().to_dense(), expected));
    }
  });
}

TEST(DataParallel, OneRankMayEvaluateAlone) {
  run_ranks(2, [](const ProcessGroup& group) {
    torch::nn::Sequential net(make_net(), torch::nn::BatchNorm1d(1));
    DataParallel model(net, group);
    if (group.rank() == 0) {
      const torch::NoGradGuard no_grad;
      model(joined_batch(2));
    }
    model(share_of(joined_batch(2), group)).sum().backward();
  });
}

void expect_any_module_to_do(const ProcessGroup& group) {
  DataParallel<torch::nn::LinearImpl> by_holder(torch::nn::Linear(2, 3), group);
  DataParallel by_pointer(std::make_shared<torch::nn::LinearImpl>(2, 3), group, DataParallelOptions());
  torch::nn::LinearImpl plain(2, 3);
  DataParallel by_reference(plain, group);
  EXPECT_EQ(&by_reference.module(), &plain);
  for (auto* model : {&by_holder, &by_pointer, &by_reference}) {
    model->forward(torch::ones({1, 2})).sum().backward();
    EXPECT_TRUE(torch::equal(model->module().bias.grad(), torch::ones({3})));
  }
}

TEST(DataParallel, TakesAnyModule) { run_ranks(1, expect_any_module_to_do); }

void expect_refusals(const ProcessGroup& group) {
  torch::nn::Linear net(2, 2);
  const auto refuse = [&](const DataParallelOptions& options, const char* part) {
    expect_has(message_of<InvalidArgument>([&] { DataParallel(net, group, options); }), {part});
  };
  refuse(DataParallelOptions().bucket_cap(0), "bucket_cap 0: expected 1 byte");
  refuse(DataParallelOptions().first_bucket_cap(-1), "first_bucket_cap -1");
  net->weight.set_requires_grad(false);
  net->bias.set_requires_grad(false);
  refuse({}, "no parameter of torch::nn::LinearImpl requires a gradient");
}

TEST(DataParallel, RefusesWhatCannotWork) { run_ranks(1, expect_refusals); }

TEST(DataParallel, ModelsThatDifferAreNamedOnAllRanks) {
  const auto refuse = [](const std::function<DataParallel<torch::nn::SequentialImpl>(const ProcessGroup&)>& make,
                         const std::vector<std::string>& parts) {
    run_ranks(
        4, [&](const ProcessGroup& group) { expect_has(message_of<DistributedError>([&] { make(group); }), parts); });
  };
  using torch::nn::Linear;
  using torch::nn::Sequential;
  const auto wrap = [](const Sequential& net, const ProcessGroup& group, const DataParallelOptions& options = {}) {
    return DataParallel(net, group, options);
  };
  refuse(
      [&](const ProcessGroup& g) { return wrap(Sequential(Linear(4, 4), Linear(4, g.rank() == 2 ? 5 : 4)), g); },
      {"ranks 0, 1, 3: parameter `1.weight` Float [4, 4] on cpu", "rank 2: parameter `1.weight` Float [5, 4] on cpu"});
  refuse(
      [&](const ProcessGroup& g) {
        Sequential net(Linear(4, 4));
        if (g.rank() != 0) net->push_back(Linear(4, 4));
        return wrap(net, g);
      },
      {"rank 0: no more", "ranks 1, 2, 3: parameter `1.weight`"});
  refuse(
      [&](const ProcessGroup& g) {
        Sequential net(Linear(4, 4));
        if (g.rank() == 3) net->to(torch::kDouble);
        return wrap(net, g);
      },
      {"ranks 0, 1, 2: parameter `0.weight` Float", "rank 3: parameter `0.weight` Double"});
  refuse(
      [&](const ProcessGroup& g) {
        Sequential net(Linear(4, 4));
        if (g.rank() == 1) net->parameters()[1].set_requires_grad(false);
        return wrap(net, g);
      },
      {"rank 1: parameter `0.bias` Float [4] on cpu, without gradient"});
  refuse(
      [&](const ProcessGroup& g) {
        return wrap(Sequential(Linear(4, 4)), g, DataParallelOptions().static_graph(g.rank() == 1));
      },
      {"ranks 0, 2, 3: option static_graph false", "rank 1: option static_graph true"});
}

TEST(DataParallel, ARankThatEndsOrIsLateFailsBackward) {
  const auto run = [](const std::function<void()>& last_rank_does) {
    const int port = refrain::free_port();
    return run_processes(3, [&](int rank) {
      const auto group = refrain::init_process_group(rank_options(rank, 3, port).timeout(2s));
      auto net = make_net(How::kReplay);
      DataParallel model(net, group);
      for (int step = 0; step < 3; ++step) {
        if (rank == 2 && step == 2) {
          net->block->parameters()[0].register_hook([&](const Tensor&) { last_rank_does(); });
        }
        model(share_of(joined_batch(3), group)).sum().backward();
      }
    });
  };
  const auto check = [](const std::vector<Ended>& ended) {
    for (const size_t rank : {0U, 1U}) {
      expect_has(ended[rank].error,
                 {"[refrain::DataParallel] averaging gradients failed on rank " + std::to_string(rank),
                  "another rank exited or timed out"});
      EXPECT_LT(ended[rank].after, 6s);
    }
  };
  check(run([] { raise(SIGKILL); }));
  check(run([] { std::this_thread::sleep_for(8s); }));
}

}  // namespace
