// Rule 4: what an operator's result depends on beyond its arguments: generators, GradMode, autocast, running
// statistics, process-wide settings.
#include <ATen/autocast_mode.h>

#include <thread>

#include "tests/tape/test_ops.h"

namespace refrain_test {
namespace {

using refrain::CheckpointError;
using HiddenState = TapeTest;

// ---- Generators -------------------------------------------------------------------------------------------------

TEST_F(HiddenState, DropoutWithTheDefaultGenerator) {
  expect_same([](Trial& run) {
    Tensor x = run.param({16, 16});
    Tensor y = run.region([&] { return at::dropout(x.exp(), 0.5, true).sin(); });
    Tensor z = run.region([&] { return at::dropout(y.cos(), 0.3, true).sin(); });
    run.note("drawn between forward and backward", torch::rand({2}));
    return z.sum();
  });
}

TEST_F(HiddenState, OwnGenerator) {
  expect_same([](Trial& run) {
    Tensor x = run.param({16, 16});
    auto& g = run.own_generator();
    return run
        .region([&] {
          Tensor mask = at::empty_like(x, x.options().requires_grad(false)).bernoulli_(0.5, g);
          Tensor noise = at::normal(0.0, 1.0, {16, 16}, g);
          return (x.exp() * mask).sin() * (x * noise).cos() * (x + torch::rand({16, 16}, g)).sin();
        })
        .sum();
  });
}

TEST_F(HiddenState, TwoGeneratorsInterleaved) {
  expect_same([](Trial& run) {
    Tensor x = run.param({8, 8});
    auto& g = run.own_generator();
    return run
        .region([&] {
          Tensor t = x;
          for (int i = 0; i < 4; ++i) {
            t = (t * torch::rand({8, 8}, g)).sin();
            t = at::dropout(t, 0.2, true).sin();
          }
          return t;
        })
        .sum();
  });
}

TEST_F(HiddenState, ManyKindsOfRandomOperators) {
  expect_same([](Trial& run) {
    Tensor x = run.param({8, 8});
    return run
        .region([&] {
          Tensor t = (x * torch::rand({8, 8})).sin() + (x * torch::randn({8, 8})).sin();
          t = t + (x * torch::randint(0, 5, {8, 8})).cos() + (x.index({torch::randperm(8)}) * 2).sin();
          t = t + (x * at::multinomial(torch::ones({8, 4}), 8, true)).sin() +
              (x * at::poisson(torch::ones({8, 8}))).sin();
          t = t + (x * torch::rand_like(x)).sin() + (x * torch::randn_like(x)).sin() +
              at::feature_dropout(x, 0.5, true);
          t = t + (x * at::bernoulli(torch::full({8, 8}, 0.5))).sin() + at::alpha_dropout(t, 0.3, true);
          return (t * unary("refrain_test::noise", x)).sin();
        })
        .sum();
  });
}

// One random value is still alive in backward, the other is drawn again.
TEST_F(HiddenState, OneKeptTheOtherRedrawn) {
  for (int which = 0; which < 2; ++which) {
    expect_same([which](Trial& run) {
      Tensor x = run.param({8, 8}), held;
      Tensor loss = run.region([&] {
                         Tensor a = torch::rand({8, 8}), b = torch::rand({8, 8}), c = torch::rand({8, 8});
                         held = which == 0 ? a : b;
                         return (x * a).sin() * (x * b).cos() * (x * c).sin();
                       })
                        .sum();
      loss.backward();
      run.note("held", held);
      return Tensor();
    });
  }
}

TEST_F(HiddenState, GeneratorIsWhereTheUserLeftIt) {
  Trial run(true);
  Tensor x = run.param({8, 8});
  Tensor loss = run.region([&] { return at::dropout(x.exp(), 0.5, true).sin(); }).sum();
  torch::manual_seed(99);
  const Tensor before = at::detail::getDefaultCPUGenerator().get_state();
  loss.backward();
  expect_bit_equal(before, at::detail::getDefaultCPUGenerator().get_state(), "state of the default generator");
}

TEST_F(HiddenState, SeededInsideTheRegion) {
  expect_same([](Trial& run) {
    Tensor x = run.param({8, 8});
    return run
        .region([&] {
          Tensor y = at::dropout(x.exp(), 0.5, true).sin();
          torch::manual_seed(3);
          return at::dropout(y, 0.5, true).sin();
        })
        .sum();
  });
}

TEST_F(HiddenState, GeneratorStatesAreShared) {  // 5 KB each, were they not
  Trial run(true);
  Tensor x = run.param({4});
  refrain::MemoryScope memory;
  Tensor loss = run.region([&] {
                     Tensor t = x;
                     for (int i = 0; i < 200; ++i) t = at::dropout(t, 0.5, true).sin();
                     return t;
                   })
                    .sum();
  EXPECT_LT(memory.current(), 200 * 5056 / 4);
  loss.backward();
}

TEST_F(HiddenState, WithoutPreservingARedrawIsRefused) {
  const auto options = refrain::CheckpointOptions().preserve_rng_state(false);
  Trial run(true);
  Tensor x = run.param({8, 8});
  Tensor random = refrain::checkpoint(options, [&] { return at::dropout(x.exp(), 0.5, true).sin(); }).sum();
  EXPECT_THROW(random.backward(), CheckpointError);
  Tensor calm = refrain::checkpoint(options, [&] { return x.exp().sin(); }).sum();
  calm.backward();
  expect_bit_equal((x.exp().cos() * x.exp()).detach(), x.grad());
}

// {read state, draw} and {set, replay, put back} must each be atomic: a torn pair is a silently wrong mask.
TEST_F(HiddenState, TwoThreadsDrawFromOneGenerator) {
  constexpr int kSteps = 1000;
  torch::manual_seed(1);
  for (int i = 0; i < 2 * kSteps; ++i) at::dropout(torch::ones({64}), 0.5, true);
  const Tensor expected_state = at::detail::getDefaultCPUGenerator().get_state();

  torch::manual_seed(1);
  std::atomic<int> wrong = 0;
  auto work = [&wrong] {
    for (int i = 0; i < kSteps; ++i) {
      Tensor x = torch::full({64}, 0.01 * i, torch::requires_grad());
      Tensor y = refrain::checkpoint([&] { return at::dropout(x.exp(), 0.5, true); });
      y.sum().backward();
      // mask * 2 is exact, so the gradient has the bits of the output.
      if (!x.grad().equal(y.detach())) ++wrong;
    }
  };
  std::thread a(work), b(work);
  a.join();
  b.join();
  EXPECT_EQ(wrong, 0);
  expect_bit_equal(expected_state, at::detail::getDefaultCPUGenerator().get_state(), "state of the default generator");
}

// ---- Modes ------------------------------------------------------------------------------------------------------

TEST_F(HiddenState, NoGradInsideTheRegion) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor scale;
          {
            torch::NoGradGuard no_grad;
            scale = x.exp().softmax(0);
            torch::AutoGradMode again(true);
            scale = (scale * x).sin().detach();
          }
          return (x * scale).sin();
        })
        .sum();
  });
}

TEST_F(HiddenState, KernelThatAsksForGradMode) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run.region([&] {
                at::AutoDispatchBelowADInplaceOrView below;
                Tensor on = kernels::op<Tensor(const Tensor&)>("refrain_test::sees_grad_mode").call(x.detach());
                torch::NoGradGuard no_grad;
                Tensor off = kernels::op<Tensor(const Tensor&)>("refrain_test::sees_grad_mode").call(x.detach());
                return std::pair(on, off);
              }).first.sum() *
               0 +
           run.region([&] {
                Tensor on, off;
                {
                  at::AutoDispatchBelowADInplaceOrView below;
                  on = kernels::op<Tensor(const Tensor&)>("refrain_test::sees_grad_mode").call(x.detach());
                  torch::NoGradGuard no_grad;
                  off = kernels::op<Tensor(const Tensor&)>("refrain_test::sees_grad_mode").call(x.detach());
                }
                return (x * on).sin() + (x * off).cos();
              })
               .sum();
  });
}

// What LibTorch carries from thread to thread with at::ThreadLocalState, here its debug info.
TEST_F(HiddenState, KernelThatAsksForThreadLocalState) {
  struct Marker : c10::DebugInfoBase {};
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4}), y;
    {
      c10::DebugInfoGuard guard(c10::DebugInfoKind::TEST_INFO, std::make_shared<Marker>());
      y = run.region([&] { return x * unary("refrain_test::sees_debug_info", x.detach()); });
    }
    return y.sum();
  });
}

TEST_F(HiddenState, KernelThatAsksForRequiresGrad) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor yes = unary("refrain_test::sees_requires_grad", x);
          Tensor also = unary("refrain_test::sees_requires_grad", x * 2);
          Tensor no = unary("refrain_test::sees_requires_grad", x.detach());
          return (x * yes).sin() + (x * also).sin() + (x * no).cos();
        })
        .sum();
  });
}

// `mkldnn_rnn_layer` returns its workspace only with gradients on.
TEST_F(HiddenState, Lstm) {
  expect_same([](Trial& run) {
    torch::nn::LSTM lstm(torch::nn::LSTMOptions(6, 8).num_layers(2).dropout(0.2).batch_first(true));
    Tensor x = run.param({3, 5, 6});
    Tensor loss = run.region([&] { return std::get<0>(lstm->forward(x)); }).sin().sum();
    loss.backward();
    for (const auto& p : lstm->parameters()) run.note("gradient", p.grad());
    return Tensor();
  });
}

TEST_F(HiddenState, GruAndBidirectionalLstm) {
  expect_same([](Trial& run) {
    torch::nn::GRU gru(torch::nn::GRUOptions(6, 8));
    torch::nn::LSTM lstm(torch::nn::LSTMOptions(8, 4).bidirectional(true));
    Tensor x = run.param({5, 3, 6});
    Tensor loss = run.region([&] { return std::get<0>(lstm->forward(std::get<0>(gru->forward(x)))); }).sin().sum();
    loss.backward();
    for (const auto& p : gru->parameters()) run.note("gradient", p.grad());
    for (const auto& p : lstm->parameters()) run.note("gradient", p.grad());
    return Tensor();
  });
}

// The wrapped-number flag decides the result type of 0-dim arithmetic.
// A number as a tensor, as bindings pass them: of no dimension, and too weak to raise the type of the other operand.
Tensor number(double value) {
  Tensor tensor = torch::scalar_tensor(value, torch::kDouble);
  tensor.unsafeGetTensorImpl()->set_wrapped_number(true);
  return tensor;
}

TEST_F(HiddenState, WrappedNumbers) {
  expect_same([](Trial& run) {
    Tensor x = run.param({}), h = run.track(run.input({4}).to(torch::kBFloat16));
    Tensor n = torch::arange(4);
    return run
        .region([&] {
          return (x * number(1.5)).sin() + (h * number(2.5)).sin().to(torch::kFloat) +
                 (n * number(0.1)).exp() * (x + number(2)).exp();
        })
        .sum();
  });
}

// ---- Autocast ---------------------------------------------------------------------------------------------------

class Autocast {
 public:
  explicit Autocast(at::ScalarType dtype = at::kBFloat16)
      : enabled_(at::autocast::is_autocast_enabled(at::kCPU)), dtype_(at::autocast::get_autocast_dtype(at::kCPU)) {
    at::autocast::set_autocast_enabled(at::kCPU, true);
    at::autocast::set_autocast_dtype(at::kCPU, dtype);
    at::autocast::increment_nesting();
  }
  ~Autocast() {
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(at::kCPU, enabled_);
    at::autocast::set_autocast_dtype(at::kCPU, dtype_);
  }

 private:
  bool enabled_;
  at::ScalarType dtype_;
};

TEST_F(HiddenState, RegionUnderAutocast) {
  expect_same([](Trial& run) {
    Tensor x = run.param({8, 8}), w = run.param({8, 8});
    Autocast autocast;
    return run.region([&] { return x.mm(w).relu().mm(w).tanh().softmax(1).to(torch::kFloat); }).sum();
  });
}

TEST_F(HiddenState, BackwardOutsideAutocast) {
  expect_same([](Trial& run) {
    Tensor x = run.param({8, 8}), w = run.param({8, 8}), loss;
    {
      Autocast autocast;
      loss = run.region([&] { return x.mm(w).relu().mm(w).tanh().to(torch::kFloat); }).sum();
    }
    return loss;
  });
}

TEST_F(HiddenState, AutocastOnlyInsidePartOfTheRegion) {
  expect_same([](Trial& run) {
    Tensor x = run.param({8, 8}), w = run.param({8, 8});
    return run
        .region([&] {
          Tensor y = x.mm(w).sin();
          {
            Autocast autocast;
            y = y.mm(w).tanh().to(torch::kFloat);
          }
          return y.mm(w).cos();
        })
        .sum();
  });
}

TEST_F(HiddenState, BackwardUnderAnotherAutocast) {
  expect_same([](Trial& run) {
    Tensor x = run.param({8, 8}), w = run.param({8, 8});
    Tensor loss = run.region([&] { return x.mm(w).relu().mm(w).tanh(); }).sum();
    Autocast autocast;
    loss.backward();
    run.note("still under autocast", x.mm(w));
    return Tensor();
  });
}

// ---- Statistics -------------------------------------------------------------------------------------------------

Program batch_norm_net(bool training, std::optional<double> momentum) {
  return [=](Trial& run) {
    torch::nn::BatchNorm2d bn(torch::nn::BatchNorm2dOptions(4).momentum(momentum));
    bn->train(training);
    Tensor x = run.param({2, 4, 5, 5});
    for (int i = 0; i < 2; ++i) {
      run.region([&] { return bn->forward(x.sin()).relu_().add(1).sin(); }).sum().backward();
    }
    for (const auto& b : bn->named_buffers()) run.note(b.key(), b.value());
    for (const auto& p : bn->named_parameters()) run.note(p.key(), p.value().grad());
    return Tensor();
  };
}

TEST_F(HiddenState, BatchNormStatisticsMoveOnce) { EXPECT_EQ(expect_same(batch_norm_net(true, 0.1)).leaf_copies, 0); }
TEST_F(HiddenState, BatchNormCumulativeAverage) { expect_same(batch_norm_net(true, std::nullopt)); }
TEST_F(HiddenState, BatchNormEval) { expect_same(batch_norm_net(false, 0.1)); }

TEST_F(HiddenState, BatchNormIsReplayedWithoutMovingStatistics) {
  const Counts n = expect_same([](Trial& run) {
    torch::nn::BatchNorm1d bn(3);
    Tensor x = run.param({8, 3});
    Tensor loss = run.region([&] { return bn->forward(x).sin(); }).sum();  // sin keeps the output: it must be replayed
    const Tensor mean = bn->running_mean.clone();
    loss.backward();
    run.note("mean after forward", mean);
    run.note("mean after backward", bn->running_mean);
    run.note("batches", bn->num_batches_tracked);
    return Tensor();
  });
  EXPECT_GE(n.replayed, 1);
}

TEST_F(HiddenState, BatchNormTrainThenEvalBeforeBackward) {
  expect_same([](Trial& run) {
    torch::nn::BatchNorm1d bn(3);
    Tensor x = run.param({8, 3});
    Tensor a = run.region([&] { return bn->forward(x.exp()).sin(); });
    bn->eval();
    Tensor b = run.region([&] { return bn->forward(x.exp()).sin(); });
    return (a + b).sum();
  });
}

// Eval reads the statistics, a later training step moves them without a bump.
TEST_F(HiddenState, BatchNormEvalThenTrainBeforeBackward) {
  expect_same([](Trial& run) {
    Tensor x = run.param({8, 3}), w = run.param({3}), b = run.param({3});
    Tensor mean = torch::zeros({3}), var = torch::ones({3});
    const auto bn = [&](bool training) { return at::batch_norm(x.exp(), w, b, mean, var, training, 0.5, 1e-5, false); };
    Tensor eval = run.region([&] { return bn(false).sin(); });
    Tensor train = run.region([&] { return bn(true).sin(); });
    run.note("mean", mean);
    return (eval + train).sum();
  });
}

TEST_F(HiddenState, BatchNormVariants) {
  expect_same([](Trial& run) {
    Tensor x = run.param({8, 3}), w = run.param({3}), b = run.param({3});
    Tensor mean = torch::zeros({3}), var = torch::ones({3});
    torch::nn::InstanceNorm1d instance(torch::nn::InstanceNorm1dOptions(3).track_running_stats(true).affine(true));
    Tensor loss = run.region([&] {
                       Tensor y = std::get<0>(at::native_batch_norm(x, w, b, mean, var, true, 0.1, 1e-5)).sin();
                       y = std::get<0>(at::_batch_norm_with_update(y, w, b, mean, var, 0.1, 1e-5)).sin();
                       y = std::get<0>(at::_native_batch_norm_legit(y, w, b, mean, var, true, 0.1, 1e-5)).sin();
                       return instance->forward(y.reshape({2, 3, 4})).sin();
                     })
                      .sum();
    run.note("mean", mean);
    run.note("var", var);
    run.note("instance mean", instance->running_mean);
    return loss;
  });
}

// ---- Process-wide settings --------------------------------------------------------------------------------------

// Undoes a setting at the end of its scope.
class Restore {
 public:
  explicit Restore(std::function<void()> undo) : undo_(std::move(undo)) {}
  ~Restore() { undo_(); }
  Restore(const Restore&) = delete;
  Restore& operator=(const Restore&) = delete;

 private:
  std::function<void()> undo_;
};

TEST_F(HiddenState, DefaultDtypeChangedIsRefusedAndMayBeRepaired) {
  Trial run(true);
  Tensor x = run.param({16});
  const auto fn = [&] { return (x * (torch::arange(16) / 3)).sin(); };
  Tensor expected = torch::autograd::grad({fn().sum()}, {x})[0];
  Tensor loss = run.region(fn).sum();
  {
    Restore restore([] { torch::set_default_dtype(caffe2::TypeMeta::Make<float>()); });
    torch::set_default_dtype(caffe2::TypeMeta::Make<double>());
    EXPECT_THROW(loss.backward({}, /*retain_graph=*/true), CheckpointError);
    flush_engine();
  }
  loss.backward();
  expect_bit_equal(expected, x.grad());
}

TEST_F(HiddenState, OtherSettingsChangedAreRefused) {
  auto& context = at::globalContext();
  struct Setting {
    const char* name;
    std::function<void()> change, undo;
  };
  const auto engine = context.qEngine();
  const auto engines = at::Context::supportedQEngines();
  const auto other_engine = *std::find_if(engines.begin(), engines.end(), [&](auto each) { return each != engine; });
  const std::vector<Setting> settings = {
      {"deterministic algorithms", [&] { context.setDeterministicAlgorithms(true, true); },
       [&] { context.setDeterministicAlgorithms(false, false); }},
      // the first and the last of `Context`
      {"cudnn", [&] { context.setUserEnabledCuDNN(false); }, [&] { context.setUserEnabledCuDNN(true); }},
      {"quantized engine", [&] { context.setQEngine(other_engine); }, [&] { context.setQEngine(engine); }},
      {"mkldnn", [&] { context.setUserEnabledMkldnn(false); }, [&] { context.setUserEnabledMkldnn(true); }},
      {"matmul precision", [&] { context.setFloat32MatmulPrecision("medium"); },
       [&] { context.setFloat32MatmulPrecision("highest"); }},
      {"flash attention", [&] { context.setSDPUseFlash(false); }, [&] { context.setSDPUseFlash(true); }},
      {"deterministic mkldnn", [&] { context.setDeterministicMkldnn(true); },
       [&] { context.setDeterministicMkldnn(false); }},
      {"reduced-precision reduction of float16 in cublas", [&] { context.setAllowFP16ReductionCuBLAS(false); },
       [&] { context.setAllowFP16ReductionCuBLAS(true); }},
      {"reduced-precision reduction of bfloat16 in cublas", [&] { context.setAllowBF16ReductionCuBLAS(false); },
       [&] { context.setAllowBF16ReductionCuBLAS(true); }},
      {"priority order",
       [&] {
         context.setSDPPriorityOrder({0, 1, 2, 3, 4});
       },
       [&] {
         context.setSDPPriorityOrder({1, 2, 0, 3, 4});
       }},
      {"matmul precision of mkldnn",
       [&] {
         context.setFloat32Precision(at::Float32Backend::MKLDNN, at::Float32Op::MATMUL, at::Float32Precision::BF16);
       },
       [&] {
         context.setFloat32Precision(at::Float32Backend::MKLDNN, at::Float32Op::MATMUL, at::Float32Precision::NONE);
       }},
      {"matmul precision of mkldnn",
       [&] {
         context.setFloat32Precision(at::Float32Backend::GENERIC, at::Float32Op::ALL, at::Float32Precision::BF16);
       },
       [&] {
         context.setFloat32Precision(at::Float32Backend::GENERIC, at::Float32Op::ALL, at::Float32Precision::NONE);
       }},
  };
  for (const auto& setting : settings) {
    SCOPED_TRACE(setting.name);
    Trial run(true);
    Tensor x = run.param({8, 8});
    Tensor loss = run.region([&] { return x.mm(x).exp().mm(x).sin(); }).sum();
    Restore restore(setting.undo);
    setting.change();
    const std::string text = message_of<CheckpointError>([&] { loss.backward(); });
    EXPECT_NE(text.find(setting.name), std::string::npos) << text;
    flush_engine();
    const auto options = refrain::CheckpointOptions().recompute_mode(refrain::RecomputeMode::kRerunFunction);
    setting.undo();
    loss = refrain::checkpoint(options, [&] { return x.mm(x).exp().mm(x).sin(); }).sum();
    setting.change();
    const std::string again = message_of<CheckpointError>([&] { loss.backward(); });
    EXPECT_NE(again.find(setting.name), std::string::npos) << again;
    flush_engine();
  }
}

TEST_F(HiddenState, PrecisionOfConvolutions) {
  auto& context = at::globalContext();
  const auto set = [&](at::Float32Precision to) {
    context.setFloat32Precision(at::Float32Backend::MKLDNN, at::Float32Op::CONV, to);
  };
  Trial run(true);
  Tensor x = run.param({1, 2, 8, 8}), w = run.param({2, 2, 3, 3});
  Tensor conv = run.region([&] { return at::conv2d(x, w).exp().sin(); }).sum();
  Tensor mm = run.region([&] { return x.view({8, 16}).mm(x.view({16, 8})).exp().sin(); }).sum();
  Restore restore([&] { set(at::Float32Precision::NONE); });
  set(at::Float32Precision::BF16);
  const std::string text = message_of<CheckpointError>([&] { conv.backward(); });
  EXPECT_NE(text.find("convolution precision"), std::string::npos) << text;
  flush_engine();
  EXPECT_NO_THROW(mm.backward());
}

// Both are of the thread: put in force for a replay, and back.
TEST_F(HiddenState, NumberOfThreadsChanged) {
  const int before = at::get_num_threads();
  Restore restore([&] { at::set_num_threads(before); });
  const auto product = [](int threads, const Tensor& x) {
    at::set_num_threads(threads);
    return x.dot(x);
  };
  const auto numbers = torch::randn({299999});
  ASSERT_NE(bytes_of(product(1, numbers)), bytes_of(product(3, numbers)))
      << "this product does not show how it was cut: choose another";
  for (const auto source : {refrain::RecomputeMode::kReplayOperators, refrain::RecomputeMode::kRerunFunction}) {
    expect_same(
        [&](Trial& run) {
          Tensor x = run.track(numbers);
          at::set_num_threads(3);
          Tensor loss = run.region([x] { return (x * x.dot(x)).sin(); }).sum();
          at::set_num_threads(1);
          loss.backward();
          EXPECT_EQ(at::get_num_threads(), 1);
          return Tensor();
        },
        refrain::CheckpointOptions().recompute_mode(source));
  }
}

#if defined(__SSE__)
TEST_F(HiddenState, FlushingOfDenormalsChanged) {
  Restore restore([] { at::globalContext().setFlushDenormal(false); });
  for (const auto source : {refrain::RecomputeMode::kReplayOperators, refrain::RecomputeMode::kRerunFunction}) {
    expect_same(
        [](Trial& run) {
          Tensor x = run.track(torch::full({64}, 1e-20F));
          Tensor loss = run.region([&] { return x.mul(1e-20F).mul(1e30F).square(); }).sum();
          at::globalContext().setFlushDenormal(true);
          loss.backward();
          at::globalContext().setFlushDenormal(false);
          return Tensor();
        },
        refrain::CheckpointOptions().recompute_mode(source));
  }
}
#endif

TEST_F(HiddenState, SettingChangedAndPutBackIsFine) {
  expect_same([](Trial& run) {
    Tensor x = run.param({8});
    Tensor loss = run.region([&] { return (x * (torch::arange(8) / 3)).sin(); }).sum();
    torch::set_default_dtype(caffe2::TypeMeta::Make<double>());
    torch::set_default_dtype(caffe2::TypeMeta::Make<float>());
    return loss;
  });
}

// Found by random programs: the kernel moves the statistics first, and then reads its input in the same memory. A replay, which gives it other memory
// for the statistics, would not.
TEST_F(HiddenState, ABatchNormOfItsOwnRunningVariance) {
  expect_same([](Trial& run) {
    auto weight = run.param({4});
    auto mean = torch::zeros({4}), var = torch::full({4}, 0.5);
    const auto y = run.region([&] {
      const auto x = var.expand({2, 4});
      return torch::batch_norm(x, weight, {}, mean, var, true, 0.1, 1e-5, false).norm(2, 1, true);
    });
    run.note("var", var);
    return (y * y).sum();
  });
}

}  // namespace
}  // namespace refrain_test
