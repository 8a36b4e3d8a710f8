#include "refrain/largest_batch.h"

#include "refrain/amp.h"
#include "refrain/memory.h"
#include "tests/tape/support.h"

namespace refrain_test {
namespace {

using namespace refrain::literals;
using refrain::Alternative;
using refrain::Bytes;
using refrain::InvalidArgument;
using refrain::largest_batch;
using refrain::LargestBatchOptions;

struct LargestBatchTest : TapeTest {
  // a fixed part, and 64 KiB an example
  void step(int64_t batch) {
    ++steps;
    const auto fixed = torch::empty({1 << 18}), activations = torch::empty({batch, 1 << 14});
    if (fails_in_backward) {
      auto x = torch::ones({4}).requires_grad_();
      auto y = x.exp();
      y.register_hook([&](const Tensor& g) -> Tensor { return torch::empty({batch, 1 << 14}).sum() + g; });
      y.sum().backward();
    }
  }
  Bytes level = refrain::memory_stats().current;
  int steps = 0;
  bool fails_in_backward = false;
};

TEST_F(LargestBatchTest, TheNextOneDoesNotFit) {
  for (const int64_t fits : {1, 2, 3, 7, 64, 1000}) {
    steps = 0;
    const auto found = largest_batch([&](int64_t batch) { step(batch); }, level + 1_MiB + fits * 64_KiB);
    EXPECT_EQ(found.batch, fits);
    EXPECT_EQ(found.next_batch, fits + 1);
    EXPECT_EQ(found.peak, level + 1_MiB + fits * 64_KiB);
    EXPECT_EQ(found.next_peak, found.peak + 64_KiB);
    EXPECT_EQ(static_cast<int>(found.trials.size()) + 1, steps);
    EXPECT_LE(steps, 16);
  }
}

TEST_F(LargestBatchTest, NoneAndAllAreResults) {
  const auto none = largest_batch([&](int64_t batch) { step(batch); }, level + 1_MiB);
  EXPECT_EQ(none.batch, 0);
  EXPECT_EQ(none.next_batch, 1);
  const auto all = largest_batch([&](int64_t batch) { step(batch); }, level + 1_GiB,
                                 LargestBatchOptions().min_batch(2).max_batch(9));
  EXPECT_EQ(all.batch, 9);
  EXPECT_EQ(all.next_batch, 0);
}

TEST_F(LargestBatchTest, ARefusalInBackwardLeavesNothing) {
  fails_in_backward = true;
  const auto found = largest_batch([&](int64_t batch) { step(batch); }, level + 4_MiB);
  EXPECT_GT(found.batch, 8);
  EXPECT_EQ(refrain::memory_stats().current, level);
}

TEST_F(LargestBatchTest, StepsHaveTheCallersState) {
  bool grad = true;
  at::ScalarType dtype = at::kFloat;
  const auto options = LargestBatchOptions().max_batch(1);
  {
    const torch::NoGradGuard guard;
    const refrain::AutocastScope scope(at::kCPU, at::kBFloat16);
    (void)largest_batch(
        [&](int64_t) {
          grad = torch::GradMode::is_enabled();
          dtype = torch::mm(torch::ones({2, 2}), torch::ones({2, 2})).scalar_type();
        },
        level + 1_MiB, options);
  }
  EXPECT_FALSE(grad);
  EXPECT_EQ(dtype, at::kBFloat16);
}

TEST_F(LargestBatchTest, OtherErrorsPassAndOptionsAreChecked) {
  EXPECT_EQ(message_of<std::runtime_error>(
                [&] { (void)largest_batch([](int64_t) { throw std::runtime_error("mine"); }, 1_MiB); }),
            "mine");
  const auto refused = [&](const LargestBatchOptions& options) {
    return message_of<InvalidArgument>([&] { (void)largest_batch([](int64_t) {}, 1_MiB, options); });
  };
  EXPECT_NE(refused(LargestBatchOptions().min_batch(0)).find("`min_batch` is 0"), std::string::npos);
  EXPECT_NE(refused(LargestBatchOptions().min_batch(4).max_batch(3)).find("`max_batch` 3"), std::string::npos);
}

TEST(ChooseAlternative, FastestThatFits) {
  const auto chosen = [](const std::vector<Alternative>& all) { return all[refrain::choose_alternative(all)].name; };
  EXPECT_EQ(chosen({{.name = "none", .fits = true, .overhead = 0.5}, {.name = "fast", .fits = true, .overhead = 0.0}}),
            "none");
  EXPECT_EQ(chosen({{.name = "none"},
                    {.name = "slow", .fits = true, .overhead = 0.4},
                    {.name = "fast", .fits = true, .overhead = 0.1}}),
            "fast");
  EXPECT_EQ(chosen({{.name = "none"},
                    {.name = "high", .fits = true, .peak = 9, .overhead = 0.11},
                    {.name = "low", .fits = true, .peak = 3, .overhead = 0.12}}),
            "low");
  EXPECT_EQ(chosen({{.name = "none", .max_batch = 2}, {.name = "wide", .max_batch = 5}}), "wide");
  EXPECT_THROW((void)refrain::choose_alternative({}), InvalidArgument);
}

}  // namespace
}  // namespace refrain_test
