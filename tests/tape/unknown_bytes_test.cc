// Rules 5, 6 and 7: effects happen once; bytes that came from outside the operators are kept; tensors without a plain
// storage are kept as they are. Freed blocks are poisoned before backward: stale heap bytes would hide a broken rule.
#include "tests/tape/test_ops.h"

namespace refrain_test {
namespace {

using Effects = TapeTest;
using UnknownBytes = TapeTest;
using NoStorage = TapeTest;

void fill_raw(const Tensor& t, float start) {
  float* p = t.mutable_data_ptr<float>();
  for (int64_t i = 0; i < t.numel(); ++i) p[i] = start + 0.5F * static_cast<float>(i);
}

// ---- Rule 5 -----------------------------------------------------------------------------------------------------

// Before anything registers it, an unknown operator is replayed like any other. Keep this test first.
TEST_F(Effects, CustomOperatorIsReplayedUnlessRegistered) {
  const Program program = [](Trial& run) {
    Tensor x = run.param({4, 4});
    return run.region([&] { return (x * unary("refrain_test::effect", x)).sin(); }).sum();
  };
  effects = 0;
  expect_same(program);
  EXPECT_EQ(effects, 3) << "plain, forward, replay";
  refrain::register_side_effect_op("refrain_test::effect");
  effects = 0;
  expect_same(program);
  EXPECT_EQ(effects, 2) << "plain, forward";
}

TEST_F(Effects, OutputsOfEffectsAreKeptOnlyAsLongAsNeeded) {
  refrain::register_side_effect_op("refrain_test::effect");
  Trial run(true);
  Tensor x = run.param({1 << 18});
  refrain::MemoryScope memory;
  Tensor loss = run.region([&] { return (x * unary("refrain_test::effect", x)).sin(); }).sum();
  EXPECT_GE(memory.current(), 1 << 20);
  loss.backward();
  x.mutable_grad().reset();
  EXPECT_LT(memory.current(), 1 << 16);
}

TEST_F(Effects, ResizeGrows) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor t = torch::ones({2});
          t.resize_({4, 4});
          t.narrow(0, 0, 4).copy_(x.detach() * 2);
          Tensor u = torch::empty({0});
          u.resize_as_(t).fill_(3);
          return (x * t).sin() * (x * u).cos();
        })
        .sum();
  });
}

TEST_F(Effects, ResizeShrinksAndKeepsBytes) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4});
    return run
        .region([&] {
          Tensor t = x.detach().repeat({4}) * 2;
          t.resize_({4});
          Tensor y = (x * t).sin();
          return y;
        })
        .sum();
  });
}

TEST_F(Effects, SetToAnotherStorage) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4}), outside = run.input({4, 4});
    return run
        .region([&] {
          Tensor t = x.detach() * 2;
          Tensor y = (x * t.clone()).sin();
          t.set_(outside);
          y = y + (x * t.clone()).sin();
          Tensor u = x.detach() * 3;
          t.set_(u);
          u.add_(1);
          return y + (x * t).cos();
        })
        .sum();
  });
}

TEST_F(Effects, OutOfTheWrongSize) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor out = torch::empty({0});
          at::sin_out(out, x.detach());
          Tensor again = torch::ones({0});
          at::cat_out(again, {out, out});
          return (x * out).sin() + (x * again.narrow(0, 2, 4)).cos();
        })
        .sum();
  });
}

// LibTorch warns at each resize of an output that has elements: an effect, so it happens once.
TEST_F(Effects, OutOfTheWrongSizeIsNotResizedAgain) {
  struct Count : c10::WarningHandler {
    void process(const c10::Warning&) override { ++warnings; }
    int warnings = 0;
  } count;
  c10::WarningUtils::WarningHandlerGuard guard(&count);
  Trial run(true);
  Tensor x = run.param({8, 8}), source = run.input({8, 8});
  Tensor loss = run.region([&] {
                     Tensor out = x.detach().narrow(0, 0, 4).exp();
                     at::sin_out(out, source);
                     return (x * out).sin();
                   })
                    .sum();
  EXPECT_EQ(count.warnings, 1);
  loss.backward();
  EXPECT_EQ(count.warnings, 1);
}

// What a resize adds nobody has written. It may be read: backward reads what forward read.
TEST_F(Effects, BytesThatAResizeAddsAreKept) {
  const auto free_memory_of = [](float value) { torch::full({1 << 14}, value); };
  for (const bool by_custom_operator : {false, true}) {
    Trial run(true);
    Tensor x = run.param({1 << 14}), seen;
    Tensor loss = run.region([&] {
                       Tensor t = x.detach().narrow(0, 0, 1 << 12) * 2;
                       free_memory_of(3);
                       if (by_custom_operator)
                         kernels::op<Tensor&(Tensor&, int64_t)>("refrain_test::grow").call(t, 1 << 14);
                       else
                         t.resize_({1 << 14});
                       seen = t.clone();
                       return x * t;
                     })
                      .sum();
    for (int i = 0; i < 4; ++i) free_memory_of(7);
    loss.backward();
    EXPECT_TRUE(torch::equal(x.grad().view(torch::kInt), seen.view(torch::kInt)));
  }
}

TEST_F(Effects, AddbmmInPlace) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4}), a = run.input({3, 4, 5}), b = run.input({3, 5, 4});
    return run
        .region([&] {
          Tensor t = x.detach() * 2;
          t.addbmm_(a, b);
          return (x * t).sin();
        })
        .sum();
  });
}

// What the operator wrote before it threw is nobody's result.
TEST_F(Effects, ExceptionInsideAnInPlaceOperator) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor t = x.detach() * 2;
          Tensor before = (x * t.clone()).sin();
          EXPECT_THROW(half_then_throw(t), std::exception);
          return before + (x * t).sin();
        })
        .sum();
  });
}

TEST_F(Effects, ExceptionBeforeAnythingIsWritten) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor t = x + 1;
          EXPECT_THROW(t.add_(torch::ones({3})), std::exception);
          EXPECT_THROW(t.mm(torch::ones({3, 3})), std::exception);
          return t.sin();
        })
        .sum();
  });
}

TEST_F(Effects, ExceptionInAnOperatorThatWritesALeaf) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4}), buffer = run.input({4, 4});
    Tensor loss = run.region([&] {
                       Tensor y = (x.exp() + buffer).sin();
                       EXPECT_THROW(half_then_throw(buffer), std::exception);
                       return y + (x.cos() + buffer).sin();
                     })
                      .sum();
    run.note("buffer", buffer);
    return loss;
  });
}

// Nobody undoes what was half written, and through `variable_data` no version tells: plain autograd reads it in backward, and
// so must we when the tensor is gone.
TEST_F(Effects, ExceptionAfterTheRegionInAnOperatorThatWritesASavedTensor) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4}), h;
    Tensor loss = run.region([&] {
                       h = x.exp();
                       return h.sin();
                     })
                      .sum();
    EXPECT_THROW(half_then_throw(h.variable_data()), std::exception);
    h = Tensor();
    return loss;
  });
}

// ---- Rule 6 -----------------------------------------------------------------------------------------------------

// A tensor made by `make` inside the region and filled through its pointer.
Program filled(std::function<Tensor(const Tensor&)> make) {
  return [make](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor t = make(x.detach());
          fill_raw(t, 1);
          return (x * t.reshape({4, 4})).sin();
        })
        .sum();
  };
}

TEST_F(UnknownBytes, EmptyFilledRaw) {
  expect_same(filled([](const Tensor&) { return torch::empty({4, 4}); }));
  expect_same(filled([](const Tensor&) { return torch::empty({16}); }));
  expect_same(filled([](const Tensor& x) { return torch::empty_like(x); }));
  expect_same(filled([](const Tensor&) { return at::empty_strided({4, 4}, {4, 1}, at::kFloat); }));
  expect_same(filled([](const Tensor& x) { return x.new_empty({4, 4}); }));
  expect_same(filled([](const Tensor& x) { return x.new_empty_strided({4, 4}, {4, 1}); }));
  expect_same(filled([](const Tensor&) { return at::empty_permuted({4, 4}, {0, 1}); }));
  expect_same(filled([](const Tensor&) { return torch::empty({0}).resize_({4, 4}); }));
}

// Read by an operator that is replayed, saved by none.
TEST_F(UnknownBytes, EmptyFilledRawAndReadByAReplayOnly) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor t = torch::empty({4, 4});
          fill_raw(t, 1);
          return (x.exp() + t).sin();
        })
        .sum();
  });
}

TEST_F(UnknownBytes, EmptyFilledRawAgainForEachRead) {
  const auto program = [](bool in_one_region, bool save) {
    return [=](Trial& run) {
      Tensor w = run.param({4, 4}), t = torch::empty({4, 4});
      const auto step = [&](int i) {
        fill_raw(t, static_cast<float>(i));
        return save ? (t * w).sin() + t.mm(w) : t.mul(0.5).cos().mm(w).sin();
      };
      const auto all = [&] { return step(1) + step(2) + step(3); };
      if (in_one_region) return run.region(all).sum();
      Tensor loss = torch::zeros({});
      for (int i = 0; i < 3; ++i) loss = loss + run.region([&] { return step(i); }).sum();
      return loss;
    };
  };
  for (const bool in_one_region : {false, true})
    for (const bool save : {false, true}) expect_same(program(in_one_region, save));
}

// What a region computed becomes a leaf for others when it is finished; it is written through a pointer only then.
TEST_F(UnknownBytes, ResultOfAFinishedRegionFilledRaw) {
  expect_same([](Trial& run) {
    Tensor w = run.param({8}), made;
    run.region([&] {
         made = w.detach().exp();
         return w.sin();
       })
        .sum()
        .backward();
    Tensor loss = run.region([&] { return (w.cos() + made).sin(); }).sum();
    fill_raw(made, 2);
    return loss + run.region([&] { return (w.cos() + made).sin(); }).sum();
  });
}

// Saved by a function, read by no operator.
struct SavesRawBytes : torch::autograd::Function<SavesRawBytes> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x) {
    Tensor t = torch::empty({4, 4});
    fill_raw(t, 1);
    ctx->save_for_backward({t});
    return x.sin();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    return {grads[0] * ctx->get_saved_variables()[0]};
  }
};

TEST_F(UnknownBytes, EmptyFilledRawAndOnlySaved) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run.region([&] { return SavesRawBytes::apply(x.exp()).cos(); }).sum();
  });
  expect_same([](Trial& run) {  // the last thing in the region
    Tensor x = run.param({4, 4});
    return run.region([&] { return SavesRawBytes::apply(x.exp()); }).sum();
  });
}

// A pointer to const with the const cast away passes the barrier: `empty` must count as unknown all the same.
TEST_F(UnknownBytes, EmptyFilledBehindTheBarrier) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor t = torch::empty({4, 4});
          auto* data = const_cast<float*>(t.const_data_ptr<float>());
          for (int64_t i = 0; i < t.numel(); ++i) data[i] = static_cast<float>(i);
          return (x * t).sin();
        })
        .sum();
  });
}

// Operator results: only the barrier between operators can see the write.
TEST_F(UnknownBytes, ZerosFilledRaw) {
  expect_same(filled([](const Tensor&) { return torch::zeros({4, 4}); }));
}
TEST_F(UnknownBytes, OnesFilledRaw) {
  expect_same(filled([](const Tensor&) { return torch::ones({16}); }));
}
TEST_F(UnknownBytes, ComputedValueFilledRaw) {
  expect_same(filled([](const Tensor& x) { return x.exp(); }));
}

TEST_F(UnknownBytes, FilledThroughAnAccessor) {
  expect_same([](Trial& run) {
    Tensor x = run.param({8});
    return run
        .region([&] {
          Tensor t = torch::zeros({8});
          auto a = t.accessor<float, 1>();
          for (int i = 0; i < 8; ++i) a[i] = 0.3F * static_cast<float>(i);
          return (x * t).sin();
        })
        .sum();
  });
}

TEST_F(UnknownBytes, FilledThroughAView) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor t = torch::zeros({4, 4});
          fill_raw(t[2], 1);
          return (x * t).sin();
        })
        .sum();
  });
}

TEST_F(UnknownBytes, FilledByAnOperatorThroughItsPointer) {  // an ordinary write: replayed
  expect_same([](Trial& run) {
    Tensor x = run.param({8});
    return run
        .region([&] {
          Tensor t = torch::empty({8});
          {
            torch::NoGradGuard no_grad;
            kernels::op<Tensor&(Tensor&, double)>("refrain_test::fill_through_pointer").call(t, 0.25);
          }
          return (x * t).sin();
        })
        .sum();
  });
}

// An operator read the value before it was written through the pointer, another one after.
TEST_F(UnknownBytes, RawWriteBetweenTwoReads) {
  expect_same([](Trial& run) {
    Tensor x = run.param({8});
    return run
        .region([&] {
          Tensor t = torch::zeros({8});
          Tensor before = t.cos() * 2;
          fill_raw(t, 1);
          Tensor after = t.cos() * 2;
          return (x * before).sin() * (x * after).cos();
        })
        .sum();
  });
}

TEST_F(UnknownBytes, RawWriteAfterItWasSaved) {  // plain reads the new bytes
  expect_same([](Trial& run) {
    Tensor x = run.param({8});
    return run
        .region([&] {
          Tensor t = torch::ones({8});
          Tensor y = x * t;
          fill_raw(t, 1);
          return y;
        })
        .sum();
  });
}

// Autograd saves the noise before the operator draws it. Nothing runs between that and the pointer.
TEST_F(UnknownBytes, RawWriteOfNoiseThatWasSavedBeforeItWasDrawn) {
  expect_same([](Trial& run) {
    Tensor x = run.param({8});
    return run
        .region([&] {
          Tensor noise = torch::empty({8});
          Tensor y = at::rrelu_with_noise(x.sin(), noise, 0.1, 0.4, true);
          fill_raw(noise, 1);
          return y;
        })
        .sum();
  });
}

TEST_F(UnknownBytes, RawWriteAfterAWriteWithoutAVersion) {
  expect_same([](Trial& run) {
    Tensor x = run.param({8});
    return run
        .region([&] {
          Tensor t = x.detach().exp();
          Tensor y = x * t;
          t.data().mul_(2);
          fill_raw(t, 1);
          return y;
        })
        .sum();
  });
}

TEST_F(UnknownBytes, RawWriteAfterTheRegion) {
  expect_same([](Trial& run) {
    Tensor x = run.param({8});
    auto [y, t] = run.region([&] {
      Tensor made = torch::ones({8});
      return std::pair((x * made).sin(), made);
    });
    fill_raw(t, 1);
    return y.sum();
  });
}

TEST_F(UnknownBytes, RawFillThenRecordedWrites) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor t = torch::empty({4, 4});
          fill_raw(t, 1);
          t[1].copy_(x.detach()[0]);  // partial: still unknown
          t.mul_(0.5);
          Tensor u = torch::zeros({4, 4});
          fill_raw(u, 2);
          u.add_(1);
          return (x * t).sin() + (x * u).cos();
        })
        .sum();
  });
}

TEST_F(UnknownBytes, RowsCopiedOneByOne) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor b = torch::empty({4, 4});
          for (int i = 0; i < 4; ++i) b[i].copy_(x.detach()[3 - i] * 2);
          return (x * b).sin();
        })
        .sum();
  });
}

TEST_F(UnknownBytes, EmptyThenFullyOverwrittenIsNotKept) {
  Trial run(true);
  Tensor x = run.param({1 << 18});
  refrain::MemoryScope memory;
  Tensor loss = run.region([&] {
                     Tensor t = torch::empty({1 << 18});
                     t.copy_(x.detach());
                     return (x * t).sin();
                   })
                    .sum();
  EXPECT_LT(memory.current(), 1 << 16);
  loss.backward();
}

// Saved while its bytes are unknown, and written by the very operator it was saved for.
TEST_F(UnknownBytes, NoiseInAnEmptyTensor) {
  expect_same([](Trial& run) {
    Tensor x = run.param({8, 8});
    return run
        .region([&] {
          Tensor noise = torch::empty({8, 8});
          return at::rrelu_with_noise(x * 1.0, noise, 0.1, 0.9, true).sin();
        })
        .sum();
  });
}

TEST_F(UnknownBytes, ScalarAssignment) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4});
    return run
        .region([&] {
          Tensor t = torch::zeros({4});
          t[0] = 2.0F;
          t.index_put_({1}, 3.0F);
          t.data_ptr<float>()[2] = 4.0F;
          Tensor y = (x * t).sin();
          const float read = t.const_data_ptr<float>()[1] + t[2].item<float>();
          return y * read;
        })
        .sum();
  });
}

// ---- Rule 7 -----------------------------------------------------------------------------------------------------

TEST_F(NoStorage, SparseCoo) {
  expect_same([](Trial& run) {
    Tensor w = run.param({4, 4}), outside = run.input({4, 4}).relu().to_sparse();
    return run
        .region([&] {
          Tensor inside = w.detach().relu().to_sparse();
          Tensor y = at::_sparse_mm(outside, w).sin() + at::_sparse_mm(inside, w.exp()).cos();
          return y + at::_sparse_mm(inside, outside.to_dense()).sin();
        })
        .sum();
  });
}

// Changes a sparse tensor that a region read before its backward.
void expect_change_is_refused(const std::function<void(Tensor&)>& change) {
  const std::string text = message_of<refrain::CheckpointError>([&] {
    execute(
        [&](Trial& run) {
          Tensor x = run.param({4, 4}), sparse = run.input({4, 4}).to_sparse();
          Tensor loss = run.region([&] { return (x.exp() + sparse).sin(); }).sum();
          torch::NoGradGuard no_grad;
          change(sparse);
          return loss;
        },
        true);
  });
  EXPECT_NE(text.find("aten::add"), std::string::npos) << text;
  flush_engine();
}

TEST_F(NoStorage, ChangedAfterwardsIsAnErrorThatNamesTheOperator) {
  expect_change_is_refused([](Tensor& sparse) { sparse.mul_(2); });
}

TEST_F(NoStorage, ItsValuesChangedAfterwardsIsAnError) {
  expect_change_is_refused([](Tensor& sparse) { sparse._values().mul_(2); });  // which has a version of its own
}

TEST_F(NoStorage, SparseCsr) {
  expect_same([](Trial& run) {
    Tensor w = run.param({4, 4}), outside = run.input({4, 4}).relu().to_sparse_csr();
    return run.region([&] { return outside.matmul(w.exp()).sin(); }).sum();
  });
}

TEST_F(NoStorage, SparseGradientThroughTheRegion) {
  expect_same([](Trial& run) {
    Tensor table = run.param({10, 4});
    Tensor ids = torch::tensor({1, 3, 3, 9});
    Tensor loss = run.region([&] { return at::embedding(table, ids, -1, false, /*sparse=*/true).exp().sin(); }).sum();
    loss.backward();
    run.note("gradient", table.grad().coalesce());
    table.mutable_grad().reset();
    return Tensor();
  });
}

TEST_F(NoStorage, Mkldnn) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run.region([&] { return (x.exp().to_mkldnn().relu().to_dense() * x).sin(); }).sum();
  });
}

TEST_F(NoStorage, Quantized) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor q = at::quantize_per_tensor(x.detach().exp(), 0.1, 10, torch::kQUInt8);
          return (x * q.dequantize()).sin();
        })
        .sum();
  });
}

TEST_F(NoStorage, Nested) {
  expect_same([](Trial& run) {
    Tensor a = run.param({2, 4}), b = run.param({3, 4});
    return run
        .region([&] {
          Tensor nested = torch::nested::as_nested_tensor({a.exp(), b.exp()});
          return at::relu(nested * 2.0).to_padded_tensor(0).sin();
        })
        .sum();
  });
}

TEST_F(NoStorage, ZeroTensor) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor zero = at::_efficientzerotensor({4, 4}, x.options().requires_grad(false));
          return (x.exp() + zero).sin() + (x * zero).cos() + (x * (zero * 2)).sin();
        })
        .sum();
  });
}

}  // namespace
}  // namespace refrain_test
