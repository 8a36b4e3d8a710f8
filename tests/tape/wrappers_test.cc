// Modules whose forward is a region: wrapped by nn::Checkpoint, or marked and run by call.
#include <atomic>
#include <memory>
#include <new>
#include <optional>
#include <thread>
#include <tuple>

#include "refrain/nn.h"
#include "tests/tape/support.h"

namespace refrain_test {
namespace {

using refrain::apply_checkpointing;
using refrain::CheckpointOptions;
using refrain::InvalidArgument;
using refrain::nn::Checkpoint;
using torch::nn::AnyModule;
using torch::nn::AnyValue;
using torch::nn::BatchNorm1d;
using torch::nn::Dropout;
using torch::nn::Linear;
using torch::nn::Sequential;
using Wrappers = TapeTest;

struct BlockImpl : torch::nn::Cloneable<BlockImpl> {
  BlockImpl() { reset(); }
  void reset() override {
    linear = register_module("linear", Linear(8, 8));
    norm = register_module("norm", BatchNorm1d(8));
    shift = register_buffer("shift", torch::ones({8}));
  }
  Tensor forward(Tensor x, double scale = 2.0) {
    ++calls;
    return norm(linear(x)).tanh() * scale + shift;
  }
  Linear linear = nullptr;
  BatchNorm1d norm = nullptr;
  Tensor shift;
  int calls = 0;

 protected:
  FORWARD_HAS_DEFAULT_ARGS({1, AnyValue(2.0)})
};
TORCH_MODULE(Block);

struct PairImpl : torch::nn::Module {
  std::tuple<Tensor, Tensor> forward(const Tensor& a, const Tensor& b) { return {a.exp().sin(), a.exp() * b.tanh()}; }
};
TORCH_MODULE(Pair);

struct OverloadedImpl : torch::nn::Module {
  Tensor forward(const Tensor& a) { return a.exp().sin(); }
  Tensor forward(const Tensor& a, const Tensor& b) { return a.exp() * b; }
};
TORCH_MODULE(Overloaded);

struct ConstImpl : torch::nn::Module {
  Tensor forward(const Tensor& a) const { return a.exp().sin(); }
};
TORCH_MODULE(Const);

struct TiedImpl : torch::nn::Module {
  explicit TiedImpl(const Tensor& shared) { weight = register_parameter("weight", shared); }
  Tensor forward(const Tensor& x) { return x.mm(weight).tanh(); }
  Tensor weight;
};
TORCH_MODULE(Tied);

/// Registered children reached by `call`; `again` is `block` under a second name.
struct NetImpl : torch::nn::Module {
  NetImpl() : list(register_module("list", torch::nn::ModuleList(Linear(8, 8), Linear(8, 8)))) {
    block = register_module("block", Block());
    again = register_module("again", block);
  }
  Tensor forward(Tensor x) {
    x = refrain::call(block, x);
    for (size_t i = 0; i < list->size(); ++i) x = refrain::call(list->ptr<torch::nn::LinearImpl>(i), x).relu();
    return refrain::call(again, x, 0.5);
  }
  torch::nn::ModuleList list;
  Block block = nullptr, again = nullptr;
};
TORCH_MODULE(Net);

/// How LibTorch wants a Sequential in a Sequential.
struct StageImpl : torch::nn::SequentialImpl {
  using torch::nn::SequentialImpl::SequentialImpl;
  Tensor forward(Tensor x) { return refrain::call_layers(*this, std::move(x)); }
};
TORCH_MODULE(Stage);

template <typename L, typename N, typename D>
Sequential layers() {
  torch::manual_seed(3);
  Sequential seq(L(8, 8), N(8), D(0.3), L(8, 8), torch::nn::GELU());
  torch::manual_seed(9);
  return seq;
}
Sequential plain_layers() { return layers<Linear, BatchNorm1d, Dropout>(); }

template <typename F>
int64_t recorded_by(F&& fn) {
  const int64_t before = refrain::tape_stats().recorded_ops;
  fn();
  return refrain::tape_stats().recorded_ops - before;
}

template <typename M>
std::string archive(const M& module) {
  std::ostringstream out;
  torch::save(module, out);
  return out.str();
}

template <typename M>
void load(const std::string& text, M& module) {
  std::istringstream in(text);
  torch::load(module, in);
}

void note_all(Trial& run, const torch::nn::Module& module) {
  for (const auto& p : module.named_parameters()) {
    run.note(p.key(), p.value());
    run.note(p.key() + " gradient", p.value().grad());
  }
  for (const auto& b : module.named_buffers()) run.note(b.key(), b.value());
}

template <typename Plain, typename Wrapped>
void expect_same_names(const Plain& plain, const Wrapped& wrapped) {
  EXPECT_EQ(plain->named_parameters().keys(), wrapped->named_parameters().keys());
  EXPECT_EQ(plain->named_buffers().keys(), wrapped->named_buffers().keys());
  EXPECT_EQ(plain->named_modules().keys(), wrapped->named_modules().keys());
  EXPECT_EQ(plain->named_children().keys(), wrapped->named_children().keys());
}

/// `make(wrap)` builds the model; the recorded run takes `wrap` = true.
template <typename Make>
Counts expect_model_same(Make&& make) {
  return expect_same([&](Trial& run) {
    auto model = make(run.recorded());
    Tensor x = run.param({6, 8});
    for (int step = 0; step < 2; ++step) refrain::call(model, x).pow(2).sum().backward();
    note_all(run, refrain::detail::module_of(model));
    return Tensor();
  });
}

TEST_F(Wrappers, NamesAreThoseOfThePlainModule) {
  expect_same_names(Linear(4, 3), Checkpoint<Linear>(4, 3));
  expect_same_names(BatchNorm1d(4), Checkpoint<BatchNorm1d>(4));
  expect_same_names(torch::nn::LSTM(4, 3), Checkpoint<torch::nn::LSTM>(4, 3));
  expect_same_names(Block(), Checkpoint<Block>());
  expect_same_names(Block(), Checkpoint<BlockImpl>());
  expect_same_names(plain_layers(), layers<Checkpoint<Linear>, Checkpoint<BatchNorm1d>, Checkpoint<Dropout>>());
  expect_same_names(Sequential({{"a", Linear(2, 2)}, {"b", Block()}}),
                    Checkpoint<Sequential>({{"a", Linear(2, 2)}, {"b", Checkpoint<Block>()}}));
  EXPECT_EQ(c10::str(Linear(4, 3)), c10::str(Checkpoint<Linear>(4, 3)));
}

TEST_F(Wrappers, ArchivesAreThoseOfThePlainModule) {
  const auto round = [](auto plain, auto wrapped) {
    EXPECT_NE(archive(plain), archive(wrapped)) << "equal weights to begin with: this tests nothing";
    load(archive(plain), wrapped);
    EXPECT_TRUE(archive(plain) == archive(wrapped));
    for (auto& p : wrapped->parameters()) p.detach().mul_(3);
    load(archive(wrapped), plain);
    EXPECT_TRUE(archive(plain) == archive(wrapped));
  };
  round(Linear(4, 3), Checkpoint<Linear>(4, 3));
  round(Block(), Checkpoint<Block>());
  round(Sequential(Linear(4, 3), Block()), Sequential(Checkpoint<Linear>(4, 3), Checkpoint<Block>()));
  round(Sequential(Linear(4, 3), Block()), Checkpoint<Sequential>(Linear(4, 3), Block()));
}

TEST_F(Wrappers, MarksChangeNoNamesAndNoArchive) {
  const Net model;
  const auto before = archive(model);
  const auto names = model->named_modules().keys();
  apply_checkpointing(model, [](const std::string&, const torch::nn::Module&) { return true; });
  EXPECT_EQ(model->named_modules().keys(), names);
  EXPECT_TRUE(archive(model) == before);
  Net other;
  load(before, other);
  Tensor x = torch::rand({4, 8});
  expect_bit_equal(other(x), refrain::call(model, x));
  EXPECT_EQ(refrain::remove_checkpointing(model), 7);
}

TEST_F(Wrappers, SameGradients) {
  expect_model_same([](bool wrap) {
    return wrap ? layers<Checkpoint<Linear>, Checkpoint<BatchNorm1d>, Checkpoint<Dropout>>() : plain_layers();
  });
  expect_same([](Trial& run) {
    auto plain = plain_layers();
    Checkpoint<Sequential> whole;
    for (const auto& layer : *plain) whole->push_back(layer);
    Tensor x = run.param({6, 8});
    (run.recorded() ? whole(x) : plain->forward(x)).pow(2).sum().backward();
    note_all(run, *plain);
    return Tensor();
  });
}

TEST_F(Wrappers, SameGradientsOfMarkedModels) {
  using refrain::is_module;
  const std::vector<refrain::ModulePredicate> predicates{
      is_module<Linear>(), is_module<Dropout, torch::nn::GELU>(), is_module<Sequential>(),
      [](const auto&, const auto&) { return true; }, [](const auto& name, const auto&) { return name == "1"; }};
  for (const auto& predicate : predicates)
    expect_model_same([&](bool wrap) {
      auto seq = plain_layers();
      if (wrap) apply_checkpointing(seq, predicate);
      return seq;
    });
  for (const auto& predicate : {is_module<Block>(), is_module<Linear>(), is_module<Net>(), is_module<Linear, Net>()})
    expect_model_same([&](bool wrap) {
      torch::manual_seed(3);
      Net net;
      if (wrap) apply_checkpointing(net, predicate);
      return net;
    });
}

TEST_F(Wrappers, StatisticsMoveOnceAndForwardRunsOnce) {
  Checkpoint<Block> block;
  block(torch::rand({4, 8})).sum().backward();
  EXPECT_EQ(block->calls, 1);
  EXPECT_EQ(block->norm->num_batches_tracked.item<int64_t>(), 1);
}

TEST_F(Wrappers, ForwardKeepsOnlyTheBoundaries) {
  constexpr int64_t kFloats = 1 << 14;
  const auto sin = [] { return torch::nn::Functional([](const Tensor& t) { return t.sin(); }); };
  Sequential seq(Checkpoint<Sequential>(sin(), sin(), sin()), Checkpoint<Sequential>(sin(), sin(), sin()));
  Sequential marked(Stage(sin(), sin(), sin()), Stage(sin(), sin(), sin()));
  EXPECT_EQ(apply_checkpointing(marked, refrain::is_module<Stage>()), 2);
  Tensor x = torch::rand({kFloats}, torch::requires_grad());
  for (auto& model : {seq, marked}) {
    refrain::MemoryScope memory;
    Tensor y = refrain::call(model, x);
    EXPECT_EQ(memory.current(), 2 * kFloats * 4) << "two regions: one boundary and the result";
    y.sum().backward();
  }
}

TEST_F(Wrappers, Containers) {
  const Tensor x = torch::rand({4, 8});
  Checkpoint<Block> block;
  block->eval();
  const Tensor y = block->forward(x, 2.0);
  const auto expect_region = [&](auto&& fn) { EXPECT_GT(recorded_by([&] { expect_bit_equal(y, fn()); }), 0); };
  expect_region([&] { return block(x); });
  expect_region([&] { return refrain::checkpoint(block, x); });
  AnyModule any(block);
  expect_region([&] { return any.forward(x); });
  expect_region([&] { return any.forward(x, 2.0); });
  Sequential seq(block);
  expect_region([&] { return seq->forward(x); });
  expect_region([&] { return seq->at<Checkpoint<Block>::Impl>(0).forward(x, 2.0); });
  torch::nn::ModuleList list(block);
  expect_region([&] { return list->at<Checkpoint<Block>::Impl>(0).forward(x, 2.0); });
  EXPECT_EQ(list->ptr(0)->as<Block>(), block.get());
  torch::nn::ModuleDict dict(
      std::vector<std::pair<std::string, std::shared_ptr<torch::nn::Module>>>{{"b", block.ptr()}});
  EXPECT_EQ(dict->named_parameters().keys()[0], "b.linear.weight");
}

TEST_F(Wrappers, CallReachesAnyModuleAndModuleList) {
  const Tensor x = torch::rand({4, 8});
  Block block;
  AnyModule any(block);
  torch::nn::ModuleList list(block);
  apply_checkpointing(any, refrain::is_module<Block>());
  EXPECT_GT(recorded_by([&] { refrain::call(any, x); }), 0);
  EXPECT_GT(recorded_by([&] { refrain::call(any, x, 3.0); }), 0);
  EXPECT_GT(recorded_by([&] { refrain::call(list->ptr<BlockImpl>(0), x); }), 0);
  EXPECT_GT(recorded_by([&] { refrain::call(list->at<BlockImpl>(0), x); }), 0);
  EXPECT_EQ(recorded_by([&] { block(x); }), 0) << "a mark takes effect by call alone";
  EXPECT_EQ(block->calls, 5);
}

TEST_F(Wrappers, NestedSequentials) {
  const auto make = [](auto inner) {
    torch::manual_seed(3);
    return Sequential(Linear(8, 8), decltype(inner)(Linear(8, 8), Dropout(0.2), torch::nn::Tanh()), Linear(8, 8));
  };
  for (const auto& name : {"0", "1", "1.0", "1.2"}) {
    expect_model_same([&](bool wrap) {
      auto seq = make(Stage(nullptr));
      if (wrap) {
        EXPECT_EQ(apply_checkpointing(seq, [&](const auto& found, const auto&) { return found == name; }), 1);
      }
      return seq;
    });
    // a Checkpoint is recorded whatever is marked; disabled, its layers' marks still hold
    expect_model_same([&](bool wrap) {
      auto seq = make(Checkpoint<Sequential>(nullptr));
      refrain::disable_checkpointing(seq);
      if (wrap) {
        EXPECT_EQ(apply_checkpointing(seq, [&](const auto& found, const auto&) { return found == name; }), 1);
      }
      return seq;
    });
  }
  expect_model_same([&](bool wrap) { return wrap ? make(Checkpoint<Sequential>(nullptr)) : make(Stage(nullptr)); });
}

TEST_F(Wrappers, DisableAndEnable) {
  const Tensor x = torch::rand({4, 8});
  Sequential seq(Checkpoint<Linear>(8, 8), Linear(8, 8), torch::nn::Tanh());
  apply_checkpointing(seq, [](const auto& name, const auto&) { return name == "1"; });
  const auto ops = [&] { return recorded_by([&] { refrain::call(seq, x); }); };
  const int64_t both = ops();
  auto& first = seq->at<Checkpoint<Linear>::Impl>(0);
  first.disable();
  EXPECT_FALSE(first.enabled());
  const int64_t marked = ops();
  EXPECT_GT(marked, 0);
  EXPECT_LT(marked, both);
  EXPECT_EQ(refrain::enable_checkpointing(seq), 2);
  EXPECT_EQ(ops(), both);
  EXPECT_EQ(refrain::disable_checkpointing(seq), 2);
  EXPECT_EQ(ops(), 0);
  EXPECT_EQ(refrain::enable_checkpointing(seq->ptr<torch::nn::LinearImpl>(1)), 1);
  EXPECT_EQ(ops(), marked);
  EXPECT_EQ(refrain::disable_checkpointing(seq), 2);
  apply_checkpointing(seq, [](const auto& name, const auto&) { return name == "1"; });
  EXPECT_EQ(ops(), marked) << "marking again enables";
  EXPECT_EQ(refrain::remove_checkpointing(seq), 1);
  EXPECT_EQ(refrain::remove_checkpointing(seq), 0);
  EXPECT_EQ(ops(), 0);
  EXPECT_EQ(refrain::enable_checkpointing(Linear(2, 2)), 0);
}

TEST_F(Wrappers, OptionsReachTheRegions) {
  Tensor x = torch::rand({4, 8}, torch::requires_grad());
  const auto replayed = [&](auto&& model) {
    const int64_t before = refrain::tape_stats().replayed_ops;
    refrain::call(model, x).sum().backward();
    return refrain::tape_stats().replayed_ops - before;
  };
  const auto keep = CheckpointOptions().policy(refrain::everything_saveable());
  Checkpoint<Block> block;
  EXPECT_GT(replayed(block), 0);
  block->checkpoint_options(keep);
  EXPECT_EQ(replayed(block), 0);
  Net net;
  apply_checkpointing(net, refrain::is_module<Net>());
  EXPECT_GT(replayed(net), 0);
  apply_checkpointing(net, refrain::is_module<Net>(), keep);
  EXPECT_EQ(replayed(net), 0);
}

TEST_F(Wrappers, CloneIsCheckpointedWithItsSettings) {
  const Tensor x = torch::rand({4, 8});
  Checkpoint<Block> block;
  block->checkpoint_options(CheckpointOptions().preserve_rng_state(false));
  block->eval();
  const auto expect_clone = [&](const std::shared_ptr<torch::nn::Module>& found) {
    const auto copy = std::dynamic_pointer_cast<Checkpoint<Block>::Impl>(found);
    ASSERT_TRUE(copy);
    EXPECT_NE(copy, block.ptr());
    EXPECT_FALSE(copy->is_training());
    EXPECT_FALSE(copy->checkpoint_options().preserve_rng_state());
    EXPECT_EQ(copy->enabled(), block->enabled());
    EXPECT_EQ(copy->named_parameters().keys(), block->named_parameters().keys());
    EXPECT_EQ(recorded_by([&] { expect_bit_equal(block(x), (*copy)(x)); }) > 0, block->enabled());
    torch::NoGradGuard no_grad;
    copy->linear->weight.zero_();
    copy->norm->running_mean.fill_(7);
    EXPECT_TRUE(copy->named_parameters()["linear.weight"].eq(0).all().item<bool>()) << "members are not the registered";
    EXPECT_FALSE(block->linear->weight.eq(0).any().item<bool>()) << "the clone shares tensors";
    EXPECT_FALSE(block->norm->running_mean.eq(7).any().item<bool>());
  };
  expect_clone(block->clone());
  expect_clone(Sequential(std::dynamic_pointer_cast<torch::nn::SequentialImpl>(Sequential(block)->clone()))->ptr(0));
  block->disable();
  expect_clone(block->clone());

  Checkpoint<Sequential> whole(Linear(8, 8), torch::nn::Tanh());
  auto copy = std::dynamic_pointer_cast<Checkpoint<Sequential>::Impl>(whole->clone());
  ASSERT_TRUE(copy);
  EXPECT_GT(recorded_by([&] { expect_bit_equal(whole(x), copy->forward(x)); }), 0);
  EXPECT_THROW(Checkpoint<Pair>()->clone(), c10::Error) << "as the plain one: it is not Cloneable";
}

struct UncopyableImpl : torch::nn::Module {
  Tensor forward(const Tensor& x) { return x.exp(); }
  std::shared_ptr<torch::nn::Module> clone(const std::optional<torch::Device>& = std::nullopt) const override {
    return std::make_shared<UncopyableImpl>();
  }
  std::unique_ptr<int> state;
};
TORCH_MODULE(Uncopyable);

TEST_F(Wrappers, CloneOfAClassThatCannotBeCopied) {
  Checkpoint<Uncopyable> block;
  const auto message = message_of<InvalidArgument>([&] { block->clone(); });
  EXPECT_NE(message.find("its class cannot be copied"), std::string::npos) << message;
  EXPECT_NE(message.find("UncopyableImpl"), std::string::npos) << message;
}

struct ParentImpl : torch::nn::Cloneable<ParentImpl> {
  ParentImpl() { reset(); }
  void reset() override {
    child = register_module("child", Checkpoint<Block>());
    child->checkpoint_options(CheckpointOptions().preserve_rng_state(false));
  }
  Tensor forward(Tensor x) { return child(x); }
  Checkpoint<Block> child = nullptr;
};

TEST_F(Wrappers, CloneOfAParent) {
  const auto parent = std::make_shared<ParentImpl>();
  parent->eval();
  const auto copy = std::dynamic_pointer_cast<ParentImpl>(parent->clone());
  ASSERT_TRUE(copy);
  EXPECT_FALSE(copy->child->checkpoint_options().preserve_rng_state());
  const Tensor x = torch::rand({4, 8});
  EXPECT_GT(recorded_by([&] { expect_bit_equal(parent->forward(x), copy->forward(x)); }), 0);
}

TEST_F(Wrappers, CloneOfAMarkedModuleHasNoMark) {
  Block block;
  apply_checkpointing(block, refrain::is_module<Block>());
  auto copy = std::dynamic_pointer_cast<BlockImpl>(block->clone());
  EXPECT_EQ(recorded_by([&] { refrain::call(copy, torch::rand({4, 8})); }), 0);
}

TEST_F(Wrappers, TrainEvalAndToAfterwards) {
  for (const bool marks : {false, true})
    expect_same([&](Trial& run) {
      auto seq = run.recorded() && !marks ? layers<Checkpoint<Linear>, Checkpoint<BatchNorm1d>, Checkpoint<Dropout>>()
                                          : plain_layers();
      if (run.recorded() && marks) apply_checkpointing(seq, refrain::is_module<Linear, BatchNorm1d, Dropout>());
      Tensor x = run.param({6, 8});
      seq->eval();
      refrain::call(seq, x).pow(2).sum().backward();
      seq->to(torch::kDouble);
      seq->zero_grad();
      seq->train();
      Tensor y = refrain::call(seq, x.to(torch::kDouble));
      EXPECT_EQ(y.scalar_type(), torch::kDouble);
      y.pow(2).sum().backward();
      note_all(run, *seq);
      return Tensor();
    });
}

TEST_F(Wrappers, ASharedModuleIsOneModule) {
  Net net;  // `block` is also `again`
  EXPECT_EQ(apply_checkpointing(net, refrain::is_module<Block>()), 1);
  EXPECT_EQ(refrain::disable_checkpointing(net), 1);
  EXPECT_EQ(refrain::remove_checkpointing(net), 1);

  const auto shared = [](auto layer) { return Sequential(layer, torch::nn::Tanh(), layer); };
  expect_model_same([&](bool wrap) {
    torch::manual_seed(3);
    return wrap ? shared(Checkpoint<Block>()) : shared(Block());
  });
  auto seq = shared(Checkpoint<Block>());
  seq->forward(torch::rand({4, 8})).sum().backward();
  EXPECT_EQ(seq->at<Checkpoint<Block>::Impl>(0).norm->num_batches_tracked.item<int64_t>(), 2);
}

TEST_F(Wrappers, HooksOfASharedParameterFireOncePerBackward) {
  for (const bool marks : {false, true})
    expect_same([&](Trial& run) {
      Tensor weight = run.param({8, 8});
      auto seq = run.recorded() && !marks
                     ? Sequential(Checkpoint<Tied>(weight), torch::nn::Tanh(), Checkpoint<Tied>(weight))
                     : Sequential(Tied(weight), torch::nn::Tanh(), Tied(weight));
      if (run.recorded() && marks) {
        EXPECT_EQ(apply_checkpointing(seq, refrain::is_module<Tied>()), 2);
      }
      int hooks = 0;
      weight.register_hook([&](const Tensor& g) {
        run.note("gradient in hook " + std::to_string(++hooks), g);
        return g * 2;
      });
      for (int step = 1; step <= 2; ++step) {
        refrain::call(seq, run.input({4, 8})).sum().backward();
        EXPECT_EQ(hooks, step);
      }
      return Tensor();
    });
}

TEST_F(Wrappers, AnotherModuleAtTheAddressOfADeadOneIsNotMarked) {
  using torch::nn::LinearImpl;
  alignas(LinearImpl) std::byte room[sizeof(LinearImpl)];
  const auto make = [&] {
    return std::shared_ptr<LinearImpl>(new (room) LinearImpl(8, 8), [](LinearImpl* m) { m->~LinearImpl(); });
  };
  const Tensor x = torch::rand({4, 8});
  auto module = make();
  apply_checkpointing(module, refrain::is_module<Linear>());
  EXPECT_GT(recorded_by([&] { refrain::call(module, x); }), 0);
  module.reset();
  module = make();
  EXPECT_EQ(recorded_by([&] { refrain::call(module, x); }), 0);
  EXPECT_EQ(refrain::enable_checkpointing(module), 0);
  EXPECT_EQ(refrain::remove_checkpointing(module), 0);
  apply_checkpointing(module, refrain::is_module<Linear>());
  module.reset();
  module = make();
  apply_checkpointing(module, refrain::is_module<Linear>());
  EXPECT_GT(recorded_by([&] { refrain::call(module, x); }), 0);
}

TEST_F(Wrappers, AMarkDoesNotKeepItsModule) {
  Block block;
  const auto options = std::make_shared<int>();
  apply_checkpointing(block, refrain::is_module<Block>(),
                      CheckpointOptions().policy([options](const refrain::OpContext&) {
                        return refrain::CheckpointPolicy::kPreferRecompute;
                      }));
  const std::weak_ptr<BlockImpl> watch = block.ptr();
  EXPECT_EQ(options.use_count(), 2);
  block = nullptr;
  EXPECT_TRUE(watch.expired());
  apply_checkpointing(Block(), refrain::is_module<Block>());  // sweeps
  EXPECT_EQ(options.use_count(), 1);
}

TEST_F(Wrappers, ThreadsCallWhileMarksComeAndGo) {
  Net model;
  model->eval();
  const auto run = [&] {
    const Tensor x = torch::ones({4, 8});
    const auto grads = torch::autograd::grad({refrain::call(model, x).pow(2).sum()}, model->block->parameters());
    return bytes_of(torch::cat({grads[0].flatten(), grads[1].flatten()}));
  };
  const auto want = run();
  const auto any_layer = refrain::is_module<Linear, Block>();
  apply_checkpointing(model, any_layer);
  std::atomic<int> wrong = 0;
  const auto work = [&] {
    for (int i = 0; i < 50; ++i) wrong += run() != want;
  };
  std::thread first(work), second(work);
  for (int i = 0; i < 200; ++i) {
    refrain::disable_checkpointing(model);
    refrain::enable_checkpointing(model->block);
    apply_checkpointing(Linear(2, 2), any_layer);
    if (i % 3 == 0) refrain::remove_checkpointing(model);
    if (i % 3 == 1) apply_checkpointing(model, any_layer);
  }
  first.join();
  second.join();
  EXPECT_EQ(wrong, 0);
}

TEST_F(Wrappers, AMarkIsFoundWhileOthersComeAndGo) {
  Linear kept(2, 2);
  const auto linear = refrain::is_module<Linear>();
  apply_checkpointing(kept, linear);
  std::atomic<bool> done = false;
  std::atomic<int64_t> missed = 0;
  std::thread reader([&] {
    while (!done) missed += refrain::detail::mark_of(*kept) == nullptr;
  });
  for (int round = 0; round < 20; ++round) {
    std::vector<Linear> others;
    for (int i = 0; i < 200; ++i) apply_checkpointing(others.emplace_back(1, 1), linear);
  }
  done = true;
  reader.join();
  EXPECT_EQ(missed, 0);
}

TEST_F(Wrappers, DefaultArguments) {
  const Tensor x = torch::rand({4, 8});
  Checkpoint<Block> block;
  block->eval();
  const Tensor y = block->forward(x, 2.0), z = block->forward(x, 3.0);
  expect_bit_equal(y, block(x));
  expect_bit_equal(z, block(x, 3.0));
  expect_bit_equal(y, refrain::call(block, x));
  expect_bit_equal(y, refrain::call(block.ptr(), x));
  expect_bit_equal(y, refrain::call(*block, x));
  expect_bit_equal(z, AnyModule(block).forward(x, 3.0));
  expect_bit_equal(y, AnyModule(block).forward(x));
  Checkpoint<torch::nn::LSTM> lstm(torch::nn::LSTMOptions(8, 5).num_layers(2));
  const auto [out, state] = lstm(x.unsqueeze(0));
  const auto [out_again, state_again] = lstm->forward(x.unsqueeze(0), std::nullopt);
  expect_bit_equal(out, out_again);
  expect_bit_equal(std::get<1>(state), std::get<1>(state_again));
}

TEST_F(Wrappers, SeveralInputsAndATupleAsResult) {
  using Two = std::tuple<Tensor, Tensor>;
  for (int way = 0; way < 5; ++way)
    expect_same([&](Trial& run) {
      Tensor a = run.param({4}), b = run.param({4});
      Pair pair;
      Checkpoint<Pair> wrapped;
      if (run.recorded()) apply_checkpointing(pair, refrain::is_module<Pair>());
      Sequential marked(pair), seq(wrapped);
      AnyModule any(pair);
      if (!run.recorded()) wrapped->disable();
      const auto [c, d] = way == 0   ? wrapped(a, b)
                          : way == 1 ? seq->forward<Two>(a, b)
                          : way == 2 ? refrain::call(pair, a, b)
                          : way == 3 ? refrain::call<Two>(marked, a, b)
                                     : refrain::call<Two>(any, a, b);
      return (c * d).sum();
    });
  // a marked Sequential between values that are no tensors
  Sequential chain(Pair(), torch::nn::Functional([](const Tensor& t) { return t; }));
  EXPECT_THROW(refrain::call(chain, torch::ones({2}), torch::ones({2})), c10::Error) << "as Sequential itself";
}

TEST_F(Wrappers, OverloadedAndConstForward) {
  const Tensor a = torch::rand({4}, torch::requires_grad()), b = torch::rand({4});
  Checkpoint<Overloaded> overloaded;
  EXPECT_EQ(recorded_by([&] {
              expect_bit_equal(a.exp().sin(), overloaded->forward(a));
              expect_bit_equal(a.exp() * b, overloaded(a, b));
              expect_bit_equal(a.exp() * b, refrain::call(overloaded, a, b));
            }),
            6);
  const Checkpoint<Const> fixed;
  EXPECT_EQ(recorded_by([&] { expect_bit_equal(a.exp().sin(), fixed->forward(a)); }), 2);
  EXPECT_EQ(recorded_by([&] { expect_bit_equal(a.exp().sin(), refrain::call(fixed, a)); }), 2);
}

TEST_F(Wrappers, AModuleThatNoPointerOwns) {
  Checkpoint<Block>::Impl block;
  Tensor x = torch::rand({4, 8}, torch::requires_grad());
  EXPECT_GT(recorded_by([&] { block(x).sum().backward(); }), 0);
  NetImpl net;
  EXPECT_EQ(apply_checkpointing(net, refrain::is_module<Block>()), 1);
  EXPECT_GT(recorded_by([&] { refrain::call(net, x).sum().backward(); }), 0);
  EXPECT_EQ(refrain::remove_checkpointing(net), 1);
}

TEST_F(Wrappers, ARerunFindsItsModuleAlive) {
  const auto rerun = CheckpointOptions().recompute_mode(refrain::RecomputeMode::kRerunFunction);
  Tensor x = torch::rand({4, 8}, torch::requires_grad());
  Tensor loss;
  std::weak_ptr<BlockImpl> watch;
  const auto expect_rerun = [&] {
    const auto block = watch.lock();
    ASSERT_TRUE(block);
    EXPECT_EQ(block->calls, 1);
    loss.backward();
    EXPECT_EQ(block->calls, 2);
    loss.reset();
  };
  {
    Checkpoint<Block> block;
    block->checkpoint_options(rerun);
    watch = block.ptr();
    loss = block(x).sum();
  }
  expect_rerun();
  {
    Block block;
    apply_checkpointing(block, refrain::is_module<Block>(), rerun);
    watch = block.ptr();
    loss = refrain::call(block, x).sum();
  }
  expect_rerun();
  {
    Block block;
    Sequential seq(block, torch::nn::Tanh());
    apply_checkpointing(seq, refrain::is_module<Sequential>(), rerun);
    watch = block.ptr();
    loss = refrain::call(seq, x).sum();
  }
  expect_rerun();
  {
    Block block;
    Sequential seq(torch::nn::Tanh(), block);
    apply_checkpointing(seq, refrain::is_module<Block>(), rerun);
    watch = block.ptr();
    loss = refrain::call(seq, x).sum();
  }
  expect_rerun();
  EXPECT_TRUE(watch.expired()) << "a region holds its module after backward";
}

TEST_F(Wrappers, ErrorsSayWhatToDo) {
  const auto expect_in = [](const std::string& text, std::initializer_list<const char*> parts) {
    for (const auto* part : parts) EXPECT_NE(text.find(part), std::string::npos) << "no `" << part << "` in: " << text;
  };
  Net net;
  const auto none = [](const auto&, const auto&) { return false; };
  const auto all = [](const auto&, const auto&) { return true; };
  expect_in(message_of<InvalidArgument>([&] { apply_checkpointing(net, none); }),
            {"true for no module", "\"\"", "\"list\"", "\"list.0\" (torch::nn::LinearImpl)", "..."});
  expect_in(message_of<InvalidArgument>([&] { apply_checkpointing(net, nullptr); }), {"empty predicate"});
  NetImpl stack;
  expect_in(message_of<InvalidArgument>([&] { apply_checkpointing(stack, all); }),
            {"expected a model that a std::shared_ptr owns", "\"\"", "NetImpl"});
  EXPECT_EQ(refrain::remove_checkpointing(stack), 0) << "a refused call marks nothing";
  const auto thrower = [](const std::string& name, const auto&) -> bool {
    return name.empty() ? true : throw std::runtime_error("mine");
  };
  EXPECT_EQ(message_of<std::runtime_error>([&] { apply_checkpointing(net, thrower); }), "mine");
  EXPECT_EQ(refrain::remove_checkpointing(net), 0);

  const Tensor x = torch::rand({4, 8});
  torch::nn::ModuleList list(Linear(8, 8));
  expect_in(message_of<InvalidArgument>([&] { refrain::call(list->ptr<BlockImpl>(0), x); }),
            {"null", "ModuleList::ptr<T>(i)"});
  expect_in(message_of<InvalidArgument>([&] { refrain::call(Linear(nullptr), x); }), {"empty module holder"});
  expect_in(message_of<InvalidArgument>([&] {
              AnyModule empty;
              refrain::call(empty, x);
            }),
            {"null"});
  Sequential nothing;
  expect_in(message_of<c10::Error>([&] { refrain::call(nothing, x); }), {"empty Sequential"});
  Sequential seq(Pair(), Linear(8, 8));
  expect_in(message_of<c10::Error>([&] { refrain::call(seq, x, x); }), {"Expected argument #0", "tuple"});
  Sequential one(Linear(8, 8));
  expect_in(message_of<c10::Error>([&] { refrain::call<int>(one, x); }), {"cast", "int"});
}

}  // namespace
}  // namespace refrain_test
