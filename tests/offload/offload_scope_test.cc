// `OffloadScope`: plain code, without a region.
#include <thread>

#include "tests/budget/cap_support.h"
#include "tests/offload/offload_fixture.h"

namespace refrain_test {
namespace {

using refrain::OffloadOptions;
using refrain::OffloadScope;
using refrain::OffloadStore;

struct PlainOffload : OffloadTest {
  PlainOffload() : OffloadTest(OffloadOptions().min_bytes(0)) {}
  /// What `program` leaves behind, in a scope around its forward and backward.
  void expect_same_in_scope(const Program& program) {
    const auto want = execute(program, false);
    const Live before = live();
    std::vector<std::pair<std::string, std::string>> got;
    {
      const OffloadScope scope(store);
      got = execute(program, false);
    }
    EXPECT_EQ(live(), before);
    EXPECT_EQ(want, got);
    EXPECT_GT(store.stats().fetches, 0) << "nothing was offloaded: this test tests nothing";
  }
};

TEST_F(PlainOffload, GradientsAreThoseOfAPlainRun) {
  expect_same_in_scope([](Trial& run) {
    auto x = run.param({2, 3, 8, 8}), w = run.param({4, 3, 3, 3}), v = run.param({16, 64}), b = run.param({16});
    auto mean = torch::zeros({4}), var = torch::ones({4});
    auto h = torch::batch_norm(torch::conv2d(x, w, {}, 1, 1), {}, {}, mean, var, true, 0.1, 1e-5, false).relu_();
    h = torch::max_pool2d(torch::dropout(h, 0.2, true), 2);
    h = torch::linear(h.flatten(1), v, b);
    run.note("mean", mean);
    return (h.softmax(1) * h).sum();
  });
}

TEST_F(PlainOffload, ManyBackwardsAndDoubleBackward) {
  expect_same_in_scope([](Trial& run) {
    auto x = run.param({8, 8});
    auto loss = x.mm(x).sin().mm(x).exp().sum();
    auto g = torch::autograd::grad({loss}, {x}, {}, true, true)[0];
    loss.backward({}, true);
    g.pow(2).sum().backward({}, true);
    return loss;
  });
}

TEST_F(PlainOffload, MemoryFallsByWhatIsStored) {
  store = disk.store(OffloadOptions().min_bytes(16384));
  auto x = torch::randn({64, 64}).requires_grad_(), w = torch::randn({64, 64}).requires_grad_();
  const auto fn = [&] { return x.mm(w).sin().mm(w).exp().sum(); };
  fn().backward();
  refrain::MemoryScope memory;
  auto loss = fn();
  const auto plain = memory.current();
  loss.backward();
  loss.reset();
  {
    const OffloadScope scope(store);
    loss = fn();
  }
  store.flush();
  EXPECT_EQ(store.stats().stored_bytes, 3 * 16384);
  EXPECT_EQ(memory.current(), plain - 3 * 16384);
  loss.backward();
}

TEST_F(PlainOffload, OneStorageIsStoredOnceAndParametersNever) {
  auto x = torch::randn({8, 8}).requires_grad_(), w = torch::randn({8, 8}).requires_grad_();
  {
    const OffloadScope scope(store);
    auto h = x.mm(w.t());  // saves the parameter, and a view of the other
    EXPECT_EQ(store.stats().values, 0);
    (h.sin() + h.cos() + h.t().exp().log()).sum();
  }
  EXPECT_EQ(store.stats().values, 2) << "h and exp's result";
}

TEST_F(PlainOffload, NothingIsFetchedWhileTheTensorIsThere) {
  auto x = torch::randn({8, 8}).requires_grad_();
  const OffloadScope scope(store);
  const auto h = x * 2;
  h.sin().sum().backward();
  EXPECT_EQ(store.stats().values, 1);
  EXPECT_EQ(store.stats().fetches, 0);
}

TEST_F(PlainOffload, AWriteInPlaceGivesTheOldBytesOrPlainsError) {
  auto x = torch::ones({8}).requires_grad_();
  const OffloadScope scope(store);
  auto h = x * 2;
  auto loss = h.sin().sum();
  {
    torch::NoGradGuard no_grad;
    h.fill_(50);
  }
  loss.backward();
  expect_bit_equal(x.grad(), 2 * torch::cos(torch::full({8}, 2.0F)));

  loss = (x * x).sum();  // a parameter is kept, not stored
  {
    torch::NoGradGuard no_grad;
    x.fill_(50);
  }
  const auto why = message_of<refrain::CheckpointError>([&] { loss.backward(); });
  EXPECT_NE(why.find("a saved tensor was modified in place"), std::string::npos) << why;
}

// As in plain autograd: by the time that the version tells, the saved tensor has followed what asked for a pointer to write through.
TEST_F(PlainOffload, AWriteOnAnotherThreadIsAnError) {
  auto x = torch::ones({8}).requires_grad_();
  Tensor loss, h;
  {
    const OffloadScope scope(store);
    h = x * 2;
    loss = h.sin().sum();
  }
  std::thread([&] {
    torch::NoGradGuard no_grad;
    h.fill_(50);
  }).join();
  const auto why = message_of<refrain::CheckpointError>([&] { loss.backward(); });
  EXPECT_NE(why.find("a saved tensor was modified in place"), std::string::npos) << why;
}

// What a kernel wrote without a version counts, as in plain autograd; what then came with one is refused.
TEST_F(PlainOffload, AWriteWithAVersionAfterOneWithoutIsAnError) {
  auto x = torch::ones({8}).requires_grad_();
  const OffloadScope scope(store);
  auto h = x * 2;
  auto loss = h.sin().sum();
  h.variable_data().add_(1);
  {
    torch::NoGradGuard no_grad;
    h.mul_(2);
  }
  h.reset();
  const auto why = message_of<refrain::CheckpointError>([&] { loss.backward(); });
  EXPECT_NE(why.find("modified in place"), std::string::npos) << why;
}

// Found by random programs: the tensor dies between the write and backward.
TEST_F(PlainOffload, AWriteThroughAPointerGivesTheNewBytes) {
  using Operator = Tensor (*)(const Tensor&);
  const Operator saves_its_result = [](const Tensor&t) { return t.tanh(); },
                 in_place = [](const Tensor&t) { return (t * 2).tanh_(); };
  for (const auto op : {saves_its_result, in_place}) {
    auto x = torch::ones({8}).requires_grad_();
    const auto gradient = [&](bool scoped) {
      Tensor y;
      {
        std::optional<OffloadScope> scope;
        if (scoped) scope.emplace(store);
        y = op(x);
      }
      std::fill_n(y.data_ptr<float>(), 4, 0.5F);
      auto loss = y.sum();
      y.reset();
      return torch::autograd::grad({loss}, {x})[0];
    };
    const auto stored = store.stats().values;
    expect_bit_equal(gradient(false), gradient(true));
    EXPECT_EQ(store.stats().values, stored + 1);
  }
}

// Found by random programs: what a region computed is nowhere else, and nothing is replayed for what the scope saved.
TEST_F(PlainOffload, AWriteWithoutAVersionInsideARegionIsKept) {
  auto x = torch::ones({8}).requires_grad_();
  const auto gradient = [&](bool ours) {
    std::optional<refrain::MemoryCap> cap;
    std::optional<OffloadScope> scope;
    if (ours) {
      cap.emplace(refrain::Bytes{1} << 40);
      scope.emplace(store);
    }
    auto y = x.tanh();
    const auto write = [&] { y.variable_data().mul_(0.5); };
    if (ours)
      refrain::checkpoint(write);
    else
      write();
    auto loss = y.sum();
    y.reset();
    return torch::autograd::grad({loss}, {x})[0];
  };
  expect_bit_equal(gradient(false), gradient(true));
  EXPECT_EQ(store.stats().values, 1);
}

// Found by random programs: a result without history waits for the next operator as an argument does, and that operator writes it.
TEST_F(PlainOffload, AResultWithoutHistoryThatIsOverwrittenIsAnError) {
  auto x = torch::randn({3, 4}).requires_grad_(), w = torch::randn({4}).requires_grad_();
  const OffloadScope scope(store);
  auto [y, mean, rstd] = at::native_layer_norm(x, {4}, w, {}, 1e-5);
  mean.zero_();
  const auto loss = y.sum();
  mean.reset();
  const auto why = message_of<refrain::CheckpointError>([&] { loss.backward(); });
  EXPECT_NE(why.find("modified in place"), std::string::npos) << why;

  auto [most, where] = at::max(x * 2, 1);
  where.zero_();
  where.reset();
  EXPECT_THROW(most.sum().backward(), refrain::CheckpointError);
}

// Autograd saves the noise of rrelu before the operator draws it. A negative view is resolved by an operator in between.
TEST_F(PlainOffload, WhatAnOperatorWritesAfterItWasSavedIsStoredAsThatLeavesIt) {
  expect_same_in_scope([](Trial& run) {
    auto x = run.param({16, 16});
    return torch::rrelu(x * 2, 0.1, 0.9, true).sum();
  });
  expect_same_in_scope([](Trial& run) {
    auto x = run.param({16, 16});
    const auto c = at::complex(x * 2, x * 3);
    auto noise = at::zeros({16, 16});
    auto y = at::rrelu_with_noise(at::imag(c.conj()), noise, 0.1, 0.9, true);
    return (y.sin() + torch::rrelu(at::_neg_view(x * 4), 0.1, 0.9, true)).sum();
  });
}

// The last operator of a scope, and one that is followed by nothing that autograd saves.
TEST_F(PlainOffload, WhatIsSavedLastIsStoredTooAndRight) {
  auto x = torch::randn({16, 16}).requires_grad_();
  torch::manual_seed(3);
  const auto expected = torch::autograd::grad({torch::rrelu(x * 2, 0.1, 0.9, true).sum()}, {x})[0];
  torch::manual_seed(3);
  Tensor y;
  {
    const OffloadScope scope(store);
    y = torch::rrelu(x * 2, 0.1, 0.9, true);
  }
  EXPECT_EQ(store.stats().values, 2) << "stored at the end of the scope, at the latest";
  poison_heap();
  expect_bit_equal(expected, torch::autograd::grad({y.sum()}, {x})[0]);
  EXPECT_EQ(store.stats().fetches, 2);
}

// What is stored when an operator has only resolved a view is overwritten then, and kept in memory.
TEST_F(PlainOffload, WhatIsWrittenAfterAViewWasResolvedIsStoredOnceItIs) {
  auto x = torch::randn({16, 16}).requires_grad_();
  torch::manual_seed(3);
  const auto fn = [&] { return torch::rrelu(at::_neg_view(x * 4), 0.1, 0.9, true); };
  const auto expected = torch::autograd::grad({fn().sum()}, {x})[0];
  torch::manual_seed(3);
  Tensor y;
  {
    const OffloadScope scope(store);
    y = fn();
  }
  poison_heap();
  expect_bit_equal(expected, torch::autograd::grad({y.sum()}, {x})[0]);
  EXPECT_EQ(store.stats().values, 2);
  EXPECT_EQ(store.stats().fetches, 2);
}

// They save arguments of their own, which are stored about when they return: with what they write, or what they wrote over.
TEST_F(PlainOffload, AWriteByAnOperatorThatSavesItsArgumentsGivesTheOldBytes) {
  const auto rows = torch::arange(4).to(torch::kLong), columns = torch::zeros({1}, torch::kLong);
  const auto values = torch::full({16, 16}, 0.6F);
  using Write = std::function<void(Tensor&, const Tensor&)>;
  const std::vector<std::pair<const char*, Write>> writes = {
      {"index_put_",
       [&](Tensor& h, const Tensor&) {
         h.index_put_({at::indexing::Slice(), columns}, torch::full({1}, 0.6F));
       }},
      {"index_add_", [&](Tensor& h, const Tensor& y) { h.index_add_(0, rows, y.slice(0, 0, 4)); }},
      {"mul_", [&](Tensor& h, const Tensor& y) { h.mul_(y); }},
      {"addcmul_", [&](Tensor& h, const Tensor& y) { h.addcmul_(y, y, 0.3); }},
      {"masked_fill_", [&](Tensor& h, const Tensor&) { h.masked_fill_(values > h.detach(), 0.1); }},
      {"of a view", [&](Tensor& h, const Tensor& y) { h.select(0, 3).mul_(y.select(0, 2)); }}};
  for (const auto& [name, write] : writes) {
    SCOPED_TRACE(name);
    const auto run = [&, write = write](bool twin) {
      torch::manual_seed(3);
      auto x = torch::randn({16, 16}).requires_grad_(), y = torch::randn({16, 16}).requires_grad_();
      auto z = y * 2;
      auto h = x * 2;
      auto kept = at::maximum(h, z) + h.sin();
      if (twin) h = h.clone();
      write(h, z);
      auto loss = (kept * kept).sum() + h.sum();
      h = kept = z = Tensor();
      return torch::autograd::grad({loss}, {x, y});
    };
    const auto expected = run(true);
    const auto fetched = store.stats().fetches;
    const OffloadScope scope(store);
    const auto got = run(false);
    for (size_t i = 0; i < got.size(); ++i) expect_bit_equal(expected[i], got[i]);
    EXPECT_GT(store.stats().fetches, fetched);
  }
}

/// Saves its result.
struct Squash : torch::autograd::Function<Squash> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x) {
    auto y = x.tanh();
    ctx->save_for_backward({y});
    return y;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list g) {
    const auto y = ctx->get_saved_variables()[0];
    return {g[0] * (1 - y * y)};
  }
};

// An error out of the hook would leak: autograd holds what a custom function saves until all of it is saved.
TEST_F(PlainOffload, WhereThereIsNoMemoryForACopyTheTensorIsKept) {
  auto x = torch::randn({64, 64}).requires_grad_();
  const auto expected = torch::autograd::grad({Squash::apply(x).sum()}, {x})[0];
  const refrain::MemoryScope memory;
  {
    const OffloadScope scope(store);
    Tensor y;
    {
      const refrain::MemoryLimit limit(refrain::memory_stats().current + (20 << 10));
      y = Squash::apply(x);
    }
    expect_bit_equal(expected, torch::autograd::grad({y.sum()}, {x})[0]);
  }
  EXPECT_EQ(memory.current(), 0);
}

/// Its result is evicted by the time that autograd saves it, and there is no room to bring it back.
struct EvictedSquash : torch::autograd::Function<EvictedSquash> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x,
                        std::optional<refrain::MemoryLimit>* limit) {
    auto y = x.tanh();
    evict_all();
    limit->emplace(refrain::memory_stats().current);
    ctx->save_for_backward({y});
    return y;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list gradients) {
    const auto y = ctx->get_saved_variables()[0];
    return {gradients[0] * (1 - y * y), Tensor()};
  }
};

// Found by random programs.
TEST_F(PlainOffload, WhereThereIsNoMemoryToBringItBackTheTensorIsKept) {
  refrain::install_memory_tracking();
  auto x = torch::randn({64, 64}).requires_grad_();
  const auto expected = torch::autograd::grad({Squash::apply(x).sum()}, {x})[0];
  const refrain::MemoryScope memory;
  {
    const refrain::MemoryCap cap(refrain::Bytes{1} << 40, every_byte());
    const OffloadScope scope(store);
    std::optional<refrain::MemoryLimit> limit;
    const auto y = EvictedSquash::apply(x, &limit);
    limit.reset();
    expect_bit_equal(expected, torch::autograd::grad({y.sum()}, {x})[0]);
  }
  EXPECT_EQ(memory.current(), 0);
}

// As plain autograd reads them: `data()` has a version of its own.
TEST_F(PlainOffload, AWriteWithoutAVersionGivesTheNewBytes) {
  expect_same_in_scope([](Trial& run) {
    auto x = run.param({16, 16});
    auto h = x * 2, buffer = at::empty({16, 16});
    buffer.data().fill_(1);
    auto y = h.sin() * buffer;
    buffer.data().fill_(2);
    buffer.data()[3].fill_(5);
    h.data().mul_(3);
    buffer = h = Tensor();
    return y.exp().sum();
  });
}

TEST_F(PlainOffload, ScopesThatEndInAnyOrderLeaveNoneOpen) {
  auto x = torch::randn({16, 16}).requires_grad_();
  FakeDisk other_disk;
  const auto other = other_disk.store(OffloadOptions().min_bytes(0));
  auto outer = std::make_unique<OffloadScope>(store), inner = std::make_unique<OffloadScope>(other);
  outer.reset();
  auto y = (x * 2).sin();
  EXPECT_EQ(other.stats().values, 1);
  inner.reset();
  y = (y * 2).sin();
  EXPECT_EQ(store.stats().values, 0);
  EXPECT_EQ(other.stats().values, 1);
  y.sum().backward();
}

TEST_F(PlainOffload, RegionsInsideDecideThemselvesAndScopesNest) {
  FakeDisk other_disk;
  const auto other = other_disk.store(OffloadOptions().min_bytes(0));
  auto x = torch::randn({8, 8}).requires_grad_();
  const OffloadScope scope(store);
  auto h = x * 2;
  auto k = refrain::checkpoint([&] {
    const OffloadScope ignored(other);
    return h.sin().exp();
  });
  EXPECT_EQ(store.stats().values, 0);
  EXPECT_EQ(other.stats().values, 0);
  {
    const OffloadScope inner(other);
    k = k.sin();
  }
  EXPECT_EQ(other.stats().values, 1);
  k = k.cos();
  EXPECT_EQ(store.stats().values, 1);
  k.sum().backward();
  const auto got = x.grad().clone();
  x.mutable_grad().reset();
  (x * 2).sin().exp().sin().cos().sum().backward();
  expect_bit_equal(got, x.grad());
}

TEST_F(PlainOffload, WithoutGradientsNothingIsStored) {
  const OffloadScope scope(store);
  torch::NoGradGuard no_grad;
  torch::randn({8, 8}).requires_grad_().sin();
  EXPECT_EQ(store.stats().values, 0);
}

}  // namespace
}  // namespace refrain_test
