// The policy answer `kOffload`: bytes leave and come back, and nothing is computed again. On the CPU the default store declines
// (host memory already), so a store of the test's own stands in for a device's.
#include "tape/offload.h"
#include "intercept/storage_copy.h"
#include "refrain/memory.h"
#include "tests/tape/support.h"

namespace refrain_test {
namespace {

using refrain::CheckpointOptions;
using refrain::CheckpointPolicy;
using refrain::Policy;

/// Keeps bytes in a string, which the allocator does not count.
class StringStore final : public refrain::tape::OffloadStore {
 public:
  struct Bytes final : refrain::tape::Offloaded {
    Bytes(StringStore& s, const c10::Storage& from)
        : store(s), text(static_cast<const char*>(from.data()), from.nbytes()) {
      ++store.live;
    }
    ~Bytes() override { --store.live; }
    c10::Storage fetch() override {
      if (store.broken) throw std::runtime_error("the store is broken");
      ++store.fetched;
      auto storage = refrain::tape::raw_storage(text.size(), c10::kCPU);
      std::memcpy(storage.mutable_data(), text.data(), text.size());
      return storage;
    }
    StringStore& store;
    std::string text;
  };
  std::shared_ptr<refrain::tape::Offloaded> store(const c10::Storage& bytes) override {
    ++stored;
    return std::make_shared<Bytes>(*this, bytes);
  }
  int live = 0, stored = 0, fetched = 0;
  bool broken = false;
};

struct Offload : TapeTest {
  void SetUp() override {
    TapeTest::SetUp();
    refrain::tape::set_offload_store({std::shared_ptr<void>(), &store});
  }
  void TearDown() override {
    TapeTest::TearDown();
    refrain::reset_offload_store();
    EXPECT_EQ(store.live, 0) << "offloaded bytes that nobody needs";
  }
  static CheckpointOptions under(Policy policy) { return CheckpointOptions().policy(std::move(policy)); }
  static Policy everything() {
    return [](const refrain::OpContext&) { return CheckpointPolicy::kOffload; };
  }
  StringStore store;
};

TEST_F(Offload, ProductsComeBackAndAreNotComputedAgain) {
  const auto counts = expect_same([](Trial& run) {
    auto x = run.param({8, 8}), w = run.param({8, 8});
    auto loss = run.region_with(under(refrain::offload_ops({"aten::mm"})),
                                [&] { return torch::dropout(x.mm(w).sin().mm(w).exp(), 0.2, true); })
                    .sum();
    loss.backward({}, true);
    return loss;
  });
  EXPECT_EQ(store.stored, 2);
  EXPECT_EQ(store.fetched, 4);
  // Without them: sin, exp and dropout's operators in each of two backwards.
  const auto plain = expect_same([](Trial& run) {
    auto x = run.param({8, 8}), w = run.param({8, 8});
    auto loss = run.region([&] { return torch::dropout(x.mm(w).sin().mm(w).exp(), 0.2, true); }).sum();
    loss.backward({}, true);
    return loss;
  });
  EXPECT_EQ(plain.replayed - counts.replayed, 4) << "two products, two backwards";
}

TEST_F(Offload, EverythingWithWritesInPlaceNestingAndDoubleBackward) {
  const Program program = [](Trial& run) {
    auto x = run.param({8, 8}), w = run.param({8, 8});
    auto loss = run.region_with(under(everything()),
                                [&] {
                                  auto h = x.mm(w);
                                  h.add_(1).relu_();
                                  auto k = run.region_with(under(everything()), [&] { return h.mm(w).tanh(); });
                                  auto m = k.sin();
                                  m.mul_(k);
                                  return torch::dropout(m, 0.3, true).mm(w).exp();
                                })
                    .sum();
    auto g = torch::autograd::grad({loss}, {x}, {}, true, true)[0];
    g.pow(2).sum().backward({}, true);
    return loss;
  };
  expect_same(program);
  EXPECT_GT(store.fetched, 0);
}

TEST_F(Offload, NothingStaysInMemory) {
  auto x = torch::randn({64, 64}).requires_grad_(), w = torch::randn({64, 64}).requires_grad_();
  const auto held = [&](Policy policy) {
    refrain::MemoryScope memory;
    auto y = refrain::checkpoint(under(std::move(policy)), [&] { return x.mm(w).sin().mm(w).exp().sum(); });
    const auto bytes = memory.current();
    y.backward();
    return bytes;
  };
  EXPECT_LT(held(everything()), int64_t{64 * 64 * 4});
  EXPECT_GE(held(refrain::everything_saveable()), int64_t{2 * 64 * 64 * 4});
}

TEST_F(Offload, IsExplained) {
  auto x = torch::randn({8, 8}).requires_grad_();
  const auto report =
      refrain::saved_tensors(under(refrain::offload_ops({"aten::mm"})), [&] { return x.mm(x).sin().exp(); });
  std::vector<std::string> why;
  for (const auto& row : report.tensors)
    if (!row.kept && !row.referenced_elsewhere) why.push_back(row.op + ": " + row.reason);
  EXPECT_EQ(why, (std::vector<std::string>{"aten::mm: offloaded by policy"})) << report.text();
}

TEST_F(Offload, MarksAndNames) {
  expect_same([](Trial& run) {
    auto x = run.param({8, 8}), w = run.param({8, 8});
    const Policy named = [](const refrain::OpContext& op) {
      return op.checkpoint_name() == "a" ? CheckpointPolicy::kOffload : CheckpointPolicy::kPreferRecompute;
    };
    return run
        .region_with(under(named),
                     [&] {
                       auto a = refrain::checkpoint_name(x.mm(w), "a");
                       auto b = refrain::set_policy(a.sin().mm(w), CheckpointPolicy::kOffload);
                       return b.exp() * a;
                     })
        .sum();
  });
  EXPECT_EQ(store.stored, 2);
  EXPECT_EQ(store.fetched, 2);
}

TEST_F(Offload, AFetchThatFailsIsAnErrorAndMayBeTriedAgain) {
  auto x = torch::randn({8, 8}).requires_grad_();
  auto loss = refrain::checkpoint(under(everything()), [&] { return x.mm(x).sin().exp(); }).sum();
  store.broken = true;
  EXPECT_EQ(message_of<std::runtime_error>([&] { loss.backward({}, true); }), "the store is broken");
  store.broken = false;
  x.mutable_grad().reset();
  loss.backward();
  const auto got = x.grad().clone();
  x.mutable_grad().reset();
  x.mm(x).sin().exp().sum().backward();
  expect_bit_equal(x.grad(), got);
}

TEST_F(Offload, HostMemoryIsKeptByTheDefaultStore) {
  refrain::reset_offload_store();
  const auto replays = [](Policy policy) {
    return expect_same([&](Trial& run) {
             auto x = run.param({8, 8});
             return run.region_with(under(policy), [&] { return x.mm(x).sin().exp(); }).sum();
           })
        .replayed;
  };
  EXPECT_EQ(replays(everything()), replays(refrain::everything_saveable()));
  EXPECT_LT(replays(everything()), replays(refrain::nothing_saveable()));
}

TEST_F(Offload, NamesThatNeverMatchAreErrors) {
  EXPECT_NE(message_of<refrain::InvalidArgument>([] {
              (void)refrain::offload_ops({"aten::mmm"});
            }).find("refrain::offload_ops] found no operator `aten::mmm`"),
            std::string::npos);
}

}  // namespace
}  // namespace refrain_test
