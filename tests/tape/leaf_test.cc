// Rule 1: a leaf (parameter, input, tensor from outside) may change between forward and backward, with or without a
// version bump. Then the old bytes were copied, or backward is an error; never a silently wrong gradient.
#include <cstring>
#include <thread>

#include "tests/tape/support.h"

namespace refrain_test {
namespace {

using refrain::CheckpointError;
using refrain::LeafWritePolicy;
using Leaf = TapeTest;

// y = (exp(x) + w).sin(): autograd keeps exp(x) and the sum, never w itself; a replay reads w.
Tensor needs_only_replayed_w(const Tensor& x, const Tensor& w) { return (x.exp() + w).sin(); }

// A program that changes `w` between forward and backward; plain autograd does not mind.
Program changing(std::function<void(Tensor&)> change) {
  return [change](Trial& run) {
    Tensor x = run.param({4, 4});
    Tensor w = run.param({4, 4});
    Tensor loss = run.region(needs_only_replayed_w, x, w).sum();
    torch::NoGradGuard no_grad;
    change(w);
    return loss;
  };
}

TEST_F(Leaf, AddedToWithABump) {
  const Counts n = expect_same(changing([](Tensor& w) { w.add_(1); }));
  EXPECT_EQ(n.leaf_copies, 1);
}

TEST_F(Leaf, CopiedOver) {
  expect_same(changing([](Tensor& w) { w.copy_(torch::full({4, 4}, 3.0)); }));
}
TEST_F(Leaf, Zeroed) {
  expect_same(changing([](Tensor& w) { w.zero_(); }));
}
TEST_F(Leaf, OneRowWritten) {
  expect_same(changing([](Tensor& w) { w[1].fill_(9); }));
}
TEST_F(Leaf, WrittenByOut) {
  expect_same(changing([](Tensor& w) { at::sin_out(w, torch::ones({4, 4})); }));
}
TEST_F(Leaf, WrittenByForeach) {
  expect_same(changing([](Tensor& w) { at::_foreach_add_({w}, 1.0); }));
}
TEST_F(Leaf, WrittenByIndexPut) {
  expect_same(changing([](Tensor& w) { w.index_put_({torch::tensor({0, 2})}, torch::tensor(8.0F)); }));
}

TEST_F(Leaf, OnlyTheFirstWriteCopies) {
  const Counts n = expect_same(changing([](Tensor& w) {
    for (int i = 0; i < 5; ++i) w.add_(1);
  }));
  EXPECT_EQ(n.leaf_copies, 1);
}

// None of these bumps a version counter.
TEST_F(Leaf, FusedSgd) {
  const Counts n = expect_same(changing([](Tensor& w) {
    at::_fused_sgd_({w}, {torch::ones({4, 4})}, {}, 0.0, 0.0, 0.5, 0.0, false, false, true);
  }));
  EXPECT_EQ(n.leaf_copies, 1);
}

TEST_F(Leaf, FusedAdam) {
  expect_same(changing([](Tensor& w) {
    at::_fused_adam_({w}, {torch::ones({4, 4})}, {torch::zeros({4, 4})}, {torch::zeros({4, 4})}, {}, {torch::ones({})},
                     0.5, 0.9, 0.99, 0.0, 1e-8, false, false);
  }));
}

TEST_F(Leaf, FusedAdamW) {
  expect_same(changing([](Tensor& w) {
    at::_fused_adamw_({w}, {torch::ones({4, 4})}, {torch::zeros({4, 4})}, {torch::zeros({4, 4})}, {}, {torch::ones({})},
                      0.5, 0.9, 0.99, 0.1, 1e-8, false, false);
  }));
}

TEST_F(Leaf, FusedAdagrad) {
  expect_same(changing([](Tensor& w) {
    at::_fused_adagrad_({w}, {torch::ones({4, 4})}, {torch::zeros({4, 4})}, {torch::ones({})}, 0.5, 0.0, 0.0, 1e-8,
                        false);
  }));
}

TEST_F(Leaf, VariableDataWrittenOutside) {
  expect_same(changing([](Tensor& w) { w.variable_data().sub_(1); }));
}

// The counter seen by the region belongs to the alias; the write bumps the other one.
TEST_F(Leaf, FirstSeenThroughData) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    Tensor w = run.param({4, 4});
    Tensor loss = run.region([&] { return needs_only_replayed_w(x, w.variable_data()); }).sum();
    torch::NoGradGuard no_grad;
    w.add_(1);
    return loss;
  });
}

TEST_F(Leaf, WrittenThroughAView) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4});
    Tensor base = run.input({4, 4});
    Tensor row = base[2];
    Tensor loss = run.region(needs_only_replayed_w, x, row).sum();
    base.mul_(2);
    return loss;
  });
}

// Legal in plain: autograd saved x + 1, w and the product, not x. Was a false error.
TEST_F(Leaf, InputThatAutogradDidNotSaveMayChange) {
  expect_same([](Trial& run) {
    Tensor x = run.input({4, 4});
    Tensor w = run.param({4, 4});
    Tensor loss = run.region([&] { return ((x + 1) * w).sin(); }).sum();
    x.add_(1);
    return loss;
  });
}

TEST_F(Leaf, WrittenByALaterRegion) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    Tensor buffer = run.input({4, 4});
    Tensor first = run.region(needs_only_replayed_w, x, buffer);
    Tensor second = run.region([&] {
      buffer.add_(1);
      return needs_only_replayed_w(x, buffer);
    });
    return (first * 2 + second).sum();
  });
}

TEST_F(Leaf, CopiesDieWithTheirReader) {
  Trial run(true);
  Tensor x = run.param({1024});
  Tensor w = run.input({1024});
  {
    Tensor loss = run.region(needs_only_replayed_w, x, w).sum();
    w.add_(1);
    EXPECT_EQ(refrain::tape_stats().leaf_copy_bytes, 4096);
    loss.backward();
    EXPECT_EQ(refrain::tape_stats().leaf_copy_bytes, 0);
  }
  {
    Tensor dropped = run.region(needs_only_replayed_w, x, w).sum();
    w.add_(1);
    EXPECT_EQ(refrain::tape_stats().leaf_copy_bytes, 4096);
  }
  EXPECT_EQ(refrain::tape_stats().leaf_copy_bytes, 0);
}

TEST_F(Leaf, TrainingLoopCopiesNothing) {
  const Counts n = expect_same([](Trial& run) {
    Tensor w1 = run.param({8, 8});
    Tensor w2 = run.param({8, 8});
    torch::optim::SGD sgd(Tensors{w1, w2}, torch::optim::SGDOptions(0.1).momentum(0.9));
    for (int step = 0; step < 4; ++step) {
      Tensor x = run.input({2, 8});
      Tensor loss = run.region([&] { return x.mm(w1).relu().mm(w2).tanh(); }).sum();
      sgd.zero_grad();
      loss.backward();
      sgd.step();
      run.note("loss", loss);
    }
    return Tensor();
  });
  EXPECT_EQ(n.leaf_copies, 0);
}

// Autograd itself saved w: plain refuses, and so must we.
TEST_F(Leaf, SavedByAutogradAndOverwrittenIsAnError) {
  const Program program = [](Trial& run) {
    Tensor x = run.param({4, 4});
    Tensor w = run.param({4, 4});
    Tensor loss = run.region([&] { return (x.exp() * w).sin(); }).sum();
    {
      torch::NoGradGuard no_grad;
      w.add_(1);
    }
    return loss;
  };
  EXPECT_THROW(execute(program, false), std::exception);
  EXPECT_THROW(execute(program, true), std::exception);
}

TEST_F(Leaf, SavedByAutogradAndOverwrittenInsideTheRegionIsAnError) {
  const Program program = [](Trial& run) {
    Tensor x = run.param({4, 4});
    Tensor buffer = run.input({4, 4});
    return run
        .region([&] {
          Tensor y = x.exp() * buffer;
          buffer.add_(1);
          return y.sin();
        })
        .sum();
  };
  EXPECT_THROW(execute(program, false), std::exception);
  EXPECT_THROW(execute(program, true), std::exception);
}

// A thread that never opened a region is not watched: it is the kernel's request for a pointer that is seen. Where there is no room for a
// copy, the version counter tells.
TEST_F(Leaf, ChangedByAnUnwatchedThread) {
  const auto on_a_thread = changing([](Tensor& w) {
    std::thread([&] {
      torch::NoGradGuard no_grad;
      w.add_(1);
    }).join();
  });
  expect_same(on_a_thread);
  refrain::set_leaf_write_policy(LeafWritePolicy::kError);
  const std::string text = message_of<CheckpointError>([&] { execute(on_a_thread, true); });
  for (const char* part : {"aten::add", "is at version 1, expected version 0", "[4, 4]"})
    EXPECT_NE(text.find(part), std::string::npos) << "expected `" << part << "` in: " << text;
}

TEST_F(Leaf, PolicyErrorThrowsAndCopiesNothing) {
  refrain::set_leaf_write_policy(LeafWritePolicy::kError);
  const std::string text = message_of<CheckpointError>([] { execute(changing([](Tensor& w) { w.add_(1); }), true); });
  EXPECT_NE(text.find("aten::"), std::string::npos) << "the message should name the operator: " << text;
  EXPECT_EQ(refrain::tape_stats().leaf_copies, 0);
}

TEST_F(Leaf, PolicyErrorSeesWritesWithoutABump) {
  refrain::set_leaf_write_policy(LeafWritePolicy::kError);
  const auto fused = changing([](Tensor& w) {
    at::_fused_sgd_({w}, {torch::ones({4, 4})}, {}, 0.0, 0.0, 0.5, 0.0, false, false, true);
  });
  EXPECT_THROW(execute(fused, true), CheckpointError);
  EXPECT_THROW(execute(changing([](Tensor& w) { w.variable_data().sub_(1); }), true), CheckpointError);
}

TEST_F(Leaf, PolicyErrorIsOnlyForWhatBackwardNeeds) {
  refrain::set_leaf_write_policy(LeafWritePolicy::kError);
  expect_same([](Trial& run) {  // w goes into an output only: no replay reads it
    Tensor x = run.param({4, 4});
    Tensor w = run.input({4, 4});
    Tensor loss = run.region([&] { return x.exp().sin() + w; }).sum();
    w.add_(1);
    return loss;
  });
}

// One replay fills all that a region has saved; what of it backward does not read need not be there.
TEST_F(Leaf, WhatBackwardDoesNotReadIsNoError) {
  refrain::set_leaf_write_policy(LeafWritePolicy::kError);
  const auto program = [](bool reads_it) {
    return [reads_it](Trial& run) {
      Tensor x = run.param({4, 4});
      Tensor w = run.input({4, 4});
      Tensor lost;
      Tensor loss = run.region([&] {
                         lost = (x.exp() + w).sin();
                         return x.exp().neg().cos();
                       })
                        .sum();
      w.add_(1);
      return reads_it ? loss + lost.sum() : loss;
    };
  };
  expect_same(program(false));
  EXPECT_THROW(execute(program(true), true), CheckpointError);
}

TEST_F(Leaf, BeyondTheBoundIsAnError) {
  refrain::set_leaf_write_policy(LeafWritePolicy::kCopy, 63);
  EXPECT_THROW(execute(changing([](Tensor& w) { w.add_(1); }), true), CheckpointError);
  EXPECT_EQ(refrain::tape_stats().leaf_copies, 0);
  refrain::set_leaf_write_policy(LeafWritePolicy::kCopy, 64);
  expect_same(changing([](Tensor& w) { w.add_(1); }));
}

TEST_F(Leaf, SetPolicyReturnsTheOldOne) {
  EXPECT_EQ(refrain::set_leaf_write_policy(LeafWritePolicy::kError), LeafWritePolicy::kCopy);
  EXPECT_EQ(refrain::set_leaf_write_policy(LeafWritePolicy::kCopy), LeafWritePolicy::kError);
}

// `from_blob` tensors do not own their bytes: whoever does may reuse them as soon as forward is over.
TEST_F(Leaf, FromBlobMayDieAfterForward) {
  expect_same([](Trial& run) {
    Tensor x = run.param({64});
    auto blob = std::make_unique<float[]>(64);
    for (int i = 0; i < 64; ++i) blob[static_cast<size_t>(i)] = 0.25F * static_cast<float>(i);
    Tensor loss = run.region([&] { return needs_only_replayed_w(x, torch::from_blob(blob.get(), {64})); }).sum();
    std::memset(blob.get(), 0x7f, 64 * sizeof(float));
    blob.reset();
    poison_heap();
    return loss;
  });
}

TEST_F(Leaf, FromBlobStridedAndViewed) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4});
    std::vector<float> blob(16, 0.5F);
    blob[3] = 2;
    Tensor outside = torch::from_blob(blob.data(), {4, 4}).t();
    Tensor loss = run.region([&] { return needs_only_replayed_w(x, outside.select(1, 0)); }).sum();
    std::fill(blob.begin(), blob.end(), -1.0F);
    return loss;
  });
}

// ---- Memory that is filled again -----------------------------------------------------------------------------------

// One tensor over a buffer that a camera or loader fills again for each forward.
Program refilled_buffer(std::function<Tensor(const Tensor&, const Tensor&)> block, bool backward_each) {
  return [=](Trial& run) {
    Tensor w = run.param({4, 4});
    std::vector<float> buffer(16);
    Tensor frame = torch::from_blob(buffer.data(), {4, 4});
    Tensor loss = torch::zeros({});
    for (int i = 0; i < 3; ++i) {
      for (size_t j = 0; j < buffer.size(); ++j)
        buffer[j] = 0.1F * static_cast<float>((j * (static_cast<size_t>(i) + 3)) % 7);
      Tensor part = run.region([&] { return block(frame, w); }).sum();
      if (backward_each) part.backward();
      loss = loss + part.detach() * 0 + (backward_each ? part.detach() : part);
      run.note("part", part);
    }
    if (!backward_each) loss.backward();
    return Tensor();
  };
}

TEST_F(Leaf, FromBlobFilledAgain) {
  for (const bool each : {false, true})
    expect_same(refilled_buffer([](const Tensor& x, const Tensor& w) { return x.mul(0.5).sin().mm(w); }, each));
}

// What autograd saved is the memory itself: it holds the last frame in backward, with the library and without.
TEST_F(Leaf, FromBlobFilledAgainAndSaved) {
  for (const bool each : {false, true}) {
    expect_same(refilled_buffer([](const Tensor& x, const Tensor& w) { return x.mm(w).sin(); }, each));
    expect_same(
        refilled_buffer([](const Tensor& x, const Tensor& w) { return (x * w).sin() * (x.cos() * w).exp(); }, each));
  }
}

TEST_F(Leaf, FromBlobFilledAgainWithinARegion) {
  expect_same([](Trial& run) {
    Tensor w = run.param({4});
    std::vector<float> buffer(4, 1);
    Tensor frame = torch::from_blob(buffer.data(), {4});
    return run
        .region([&] {
          Tensor y = w;
          for (int i = 0; i < 4; ++i) {
            buffer[static_cast<size_t>(i)] = 2;
            y = (y * frame.cos()).sin();
          }
          return y;
        })
        .sum();
  });
}

TEST_F(Leaf, FromBlobIsCopiedOnceForEachFilling) {
  Trial run(true);
  Tensor w = run.param({1024});
  std::vector<float> buffer(1024, 1);
  Tensor frame = torch::from_blob(buffer.data(), {1024});
  const auto block = [&] { return (w.exp() + frame).sin() + (w.cos() + frame).sin(); };
  Tensor loss = run.region(block).sum();
  loss = loss + run.region(block).sum();
  EXPECT_EQ(refrain::tape_stats().leaf_copy_bytes, 4096);
  buffer[7] = 2;
  loss = loss + run.region(block).sum();
  EXPECT_EQ(refrain::tape_stats().leaf_copy_bytes, 2 * 4096);
  loss.backward();
}

// A view of borrowed memory is compared as far as it goes.
TEST_F(Leaf, FromBlobRowsFilledOneByOne) {
  expect_same([](Trial& run) {
    Tensor w = run.param({8});
    std::vector<float> buffer(32, 1);
    Tensor rows = torch::from_blob(buffer.data(), {4, 8});
    Tensor loss = torch::zeros({});
    for (int i = 0; i < 8; ++i) {
      std::fill_n(buffer.begin() + i % 4 * 8, 8, static_cast<float>(i));
      loss = loss + run.region([&] {
                         return (w.exp() + rows[i % 4]).sin() +
                                (w.exp() * rows.slice(1, 0, 8, 1)[(i + 1) % 4].cos()).sin();
                       })
                        .sum();
    }
    return loss;
  });
}

TEST_F(Leaf, ChangedThroughItsPointer) {
  const std::vector<std::function<void(Tensor&)>> changes = {
      [](Tensor& w) { w.data_ptr<float>()[3] = 9; },
      [](Tensor& w) { w.mutable_data_ptr<float>()[3] = 9; },
      [](Tensor& w) { w.accessor<float, 2>()[1][1] = 9; },
      [](Tensor& w) { static_cast<float*>(w.data_ptr())[3] = 9; },
      [](Tensor& w) { static_cast<float*>(w.storage().mutable_data())[3] = 9; },
      [](Tensor& w) { w[2].data_ptr<float>()[1] = 9; },
      [](Tensor& w) { w.detach().data_ptr<float>()[1] = 9; },
  };
  for (const auto& change : changes) {
    const Counts n = expect_same(changing(change));
    EXPECT_EQ(n.leaf_copies, 1);
  }
}

TEST_F(Leaf, ChangedThroughAPointerOnAnotherThread) {
  expect_same(changing([](Tensor& w) { std::thread([&] { w.data_ptr<float>()[3] = 9; }).join(); }));
}

TEST_F(Leaf, InputFilledAgainThroughItsPointer) {
  expect_same([](Trial& run) {
    Tensor w = run.param({4, 4}), x = run.input({4, 4}), loss = torch::zeros({});
    for (int i = 0; i < 4; ++i) {
      std::fill_n(x.data_ptr<float>(), 16, 0.3F * static_cast<float>(i));
      loss = loss + run.region([&] { return x.mul(0.5).cos().mm(w).sin() + (x * w).cos(); }).sum();
    }
    return loss;
  });
}

// Kernels of threads that the tape does not watch ask for such pointers too, and only read.
TEST_F(Leaf, APointerThatNobodyWritesThroughIsNoError) {
  refrain::set_leaf_write_policy(LeafWritePolicy::kCopy, 0);
  const Counts n = expect_same(changing([](Tensor& w) { std::thread([&] { (void)w.data_ptr<float>(); }).join(); }));
  EXPECT_EQ(n.leaf_copies, 0);
}

TEST_F(Leaf, ChangedThroughAPointerBeyondTheBoundIsAnErrorThatNamesIt) {
  refrain::set_leaf_write_policy(LeafWritePolicy::kCopy, 63);
  const std::string text =
      message_of<CheckpointError>([] { execute(changing([](Tensor& w) { w.data_ptr<float>()[3] = 9; }), true); });
  for (const char* part : {"aten::add.Tensor", "argument 1", "Float", "[4, 4]", "pointer"})
    EXPECT_NE(text.find(part), std::string::npos) << "expected `" << part << "` in: " << text;
}

class CheckInputs : public TapeTest {
 protected:
  CheckInputs() { EXPECT_FALSE(refrain::set_check_inputs(true)); }
  ~CheckInputs() override { EXPECT_TRUE(refrain::set_check_inputs(false)); }
};

// A pointer kept from before: nobody is asked.
TEST_F(CheckInputs, AWriteThroughAKeptPointerIsAnErrorThatNamesIt) {
  const Program program = [](Trial& run) {
    Tensor x = run.param({4, 4}), w = run.param({4, 4});
    float* kept = w.data_ptr<float>();
    Tensor loss = run.region(needs_only_replayed_w, x, w).sum();
    kept[5] = 7;
    return loss;
  };
  const std::string text = message_of<CheckpointError>([&] { execute(program, true); });
  for (const char* part : {"aten::add.Tensor", "argument 1", "Float", "[4, 4]", "pointer"})
    EXPECT_NE(text.find(part), std::string::npos) << "expected `" << part << "` in: " << text;
}

TEST_F(CheckInputs, FilledAgainBetweenTwoReads) {
  const auto program = [](bool needs_old) {
    return [needs_old](Trial& run) {
      Tensor w = run.param({4, 4}), x = run.input({4, 4});
      float* kept = x.data_ptr<float>();
      Tensor loss = run.region([&] { return (w.exp() + x).sin(); }).sum();
      if (!needs_old) {
        loss.backward();
        loss = torch::zeros({});
      }
      kept[3] = 4;
      return loss + run.region([&] { return (w.exp() + x).sin(); }).sum();
    };
  };
  EXPECT_THROW(execute(program(true), true), CheckpointError);
  expect_same(program(false));
}

TEST_F(CheckInputs, ProgramsThatChangeNothingUnseenPass) {
  expect_same(changing([](Tensor& w) { w.add_(1); }));
  expect_same(changing([](Tensor& w) { w.data_ptr<float>()[3] = 9; }));
  expect_same(refilled_buffer([](const Tensor& x, const Tensor& w) { return x.mul(0.5).sin().mm(w); }, false));
  expect_same([](Trial& run) {
    Tensor w = run.param({4, 4}), x = run.input({4, 4}), t = torch::empty({4, 4});
    std::fill_n(t.data_ptr<float>(), 16, 2.0F);
    Tensor loss = run.region([&] { return (w.exp() + x).sin() * (w + t).cos(); }).sum();
    x.mul_(2);
    return loss + run.region([&] { return (w.exp() + x).sin() * (w + t).cos(); }).sum();
  });
}

TEST_F(CheckInputs, ArgumentsOfAFunctionThatIsCalledAgain) {
  Tensor w = torch::ones({4}).requires_grad_(), x = torch::ones({4});
  float* kept = x.data_ptr<float>();
  const auto options = refrain::CheckpointOptions().recompute_mode(refrain::RecomputeMode::kRerunFunction);
  Tensor loss = refrain::checkpoint(
      options, [&](const Tensor& in) { return (w * in.exp()).sin().sum(); }, x);
  kept[1] = 3;
  const std::string text = message_of<CheckpointError>([&] { loss.backward(); });
  EXPECT_NE(text.find("input tensor 0"), std::string::npos) << text;
}

TEST_F(Leaf, BorrowedArgumentsOfAFunctionThatIsCalledAgain) {
  Tensor w = torch::ones({4}).requires_grad_();
  std::vector<float> buffer(4, 1);
  const auto options = refrain::CheckpointOptions().recompute_mode(refrain::RecomputeMode::kRerunFunction);
  Tensor loss = refrain::checkpoint(
      options, [&](const Tensor& in) { return (w * in.exp()).sin().sum(); }, torch::from_blob(buffer.data(), {4}));
  buffer[2] = 5;
  EXPECT_THROW(loss.backward(), CheckpointError);
}

TEST_F(Leaf, SetDataOfWhatOnlyAReplayReads) {
  expect_same(changing([](Tensor& w) { w.set_data(torch::zeros({4, 4})); }));
}

// By design: plain reads the new weights here without a word; the tape replays with the old ones.
TEST_F(Leaf, SetDataReplaysWithTheOldWeights) {
  const auto program = [](bool set) {
    return [set](Trial& run) {
      Tensor x = run.param({4, 4});
      Tensor w = run.input({4, 4});
      Tensor loss = run.region([&] { return (x.exp() * w).sin(); }).sum();
      if (set) w.set_data(torch::zeros({4, 4}));
      return loss;
    };
  };
  expect_same_as(program(false), program(true));
}

TEST_F(Leaf, FreedByTheUserIsStillThere) {
  expect_same([](Trial& run) {
    Tensor x = run.param({256});
    Tensor w = run.input({256});
    Tensor loss = run.region(needs_only_replayed_w, x, w).sum();
    w.reset();
    poison_heap();
    return loss;
  });
}

// A reused address must not be mistaken for the old storage.
TEST_F(Leaf, ReusedStorageAddress) {
  expect_same([](Trial& run) {
    Tensor x = run.param({32});
    Tensor loss = torch::zeros({});
    for (int i = 0; i < 50; ++i) {
      loss = loss + run.region([&] { return needs_only_replayed_w(x, torch::full({32}, 0.1 * i)); }).sum();
      poison_heap(256);
    }
    return loss;
  });
}

}  // namespace
}  // namespace refrain_test
