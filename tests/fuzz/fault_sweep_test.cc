#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "memory/testing.h"
#include "models/zoo.h"
#include "refrain/memory.h"
#include "refrain/tape.h"

/// Every allocation of a training step fails once, in turn. The caller must get the exception, the memory must be what
/// it was, and the next step must not notice.
namespace refrain {
namespace {

class Sweep {
 public:
  Sweep(const std::string& name, const models::ModelOptions& options) : model_(models::make_model(name, options)) {
    model_->set_strategy("per_block");
    model_->module().train();
    // The largest weights get no gradient: they would only cost time.
    for (at::Tensor p : model_->module().parameters()) p.requires_grad_(p.numel() < 1'000'000);
    batch_ = model_->synthetic_batch(3);
    for (const at::Tensor& buffer : model_->module().buffers()) buffers_before_.push_back(buffer.detach().clone());
    // Kernels set up what they keep for good on first use.
    for (int i = 0; i < 2; ++i) step();
    loss_ = step();
    for (const at::Tensor& p : model_->module().parameters()) {
      gradients_.push_back(p.grad().defined() ? p.grad().clone() : at::Tensor());
    }
    for (const at::Tensor& buffer : model_->module().buffers()) buffers_after_.push_back(buffer.detach().clone());
    forget();
  }

  int64_t allocations_of_a_step() {
    const int64_t before = memory_stats().allocations;
    step();
    const int64_t count = memory_stats().allocations - before;
    forget();
    return count;
  }

  /// What was wrong with the step whose n-th allocation fails, or with the step after it; empty = nothing.
  /// Nothing at all if the step has fewer allocations.
  std::optional<std::string> fail_at(int64_t n) {
    restore();
    const MemoryScope memory;
    std::string thrown;
    memory_testing::fail_nth_allocation(n);
    try {
      run();
    } catch (const c10::Error& error) {
      thrown = error.what_without_backtrace();
    } catch (const std::exception& error) {
      memory_testing::fail_nth_allocation(0);
      return std::string("not a c10::Error reached the caller: ") + error.what();
    }
    const bool fired = memory_testing::failure_fired();
    memory_testing::fail_nth_allocation(0);
    forget();
    if (!fired) return thrown.empty() ? std::nullopt : std::optional("threw without a failed allocation: " + thrown);
    if (thrown.empty()) return "the exception was swallowed";
    const std::string left = what_is_left(memory);
    if (!left.empty()) return left + " after: " + thrown;
    return next_step_differs();
  }

 private:
  /// State as before the first step. Allocates nothing that stays.
  void restore() {
    at::NoGradGuard no_grad;
    const std::vector<at::Tensor> buffers = model_->module().buffers();
    for (size_t i = 0; i < buffers.size(); ++i) buffers[i].copy_(buffers_before_[i]);
    at::Generator generator = at::globalContext().defaultGenerator(at::kCPU);
    generator.set_current_seed(11);
  }

  double run() {
    at::Tensor loss = model_->loss(batch_);
    loss.backward();
    return loss.item<double>();
  }

  double step() {
    forget();
    restore();
    return run();
  }

  void forget() {
    for (at::Tensor p : model_->module().parameters()) p.mutable_grad() = at::Tensor();
    // The engine's ready queue keeps tensors of a failed backward until the next one starts.
    at::ones({1}).requires_grad_().sum().backward();
  }

  static std::string what_is_left(const MemoryScope& memory) {
    if (memory.current() != 0) return std::to_string(memory.current()) + " bytes left";
    const TapeStats stats = tape_stats();
    if (stats.live_ops != 0) return std::to_string(stats.live_ops) + " ops alive";
    if (stats.live_values != 0) return std::to_string(stats.live_values) + " values alive";
    if (stats.live_slots != 0) return std::to_string(stats.live_slots) + " slots alive";
    if (stats.live_regions != 0) return std::to_string(stats.live_regions) + " regions alive";
    return "";
  }

  static bool same_bytes(const at::Tensor& a, const at::Tensor& b) {
    if (a.defined() != b.defined()) return false;
    if (!a.defined()) return true;
    if (a.sizes() != b.sizes() || a.scalar_type() != b.scalar_type()) return false;
    const at::Tensor x = a.contiguous();
    const at::Tensor y = b.contiguous();
    return std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0;
  }

  std::string next_step_differs() {
    const double loss = step();
    std::string found;
    if (std::memcmp(&loss, &loss_, sizeof loss) != 0) found = "the next step has another loss";
    const std::vector<at::Tensor> parameters = model_->module().parameters();
    for (size_t i = 0; i < parameters.size() && found.empty(); ++i) {
      if (same_bytes(parameters[i].grad(), gradients_[i])) continue;
      found = "the next step has another gradient of parameter " + std::to_string(i);
    }
    const std::vector<at::Tensor> buffers = model_->module().buffers();
    for (size_t i = 0; i < buffers.size() && found.empty(); ++i) {
      if (same_bytes(buffers[i], buffers_after_[i])) continue;
      found = "the next step leaves another buffer " + std::to_string(i);
    }
    forget();
    return found;
  }

  std::unique_ptr<models::TrainableModel> model_;
  models::Batch batch_;
  std::vector<at::Tensor> buffers_before_, buffers_after_, gradients_;
  double loss_ = 0;
};

void sweep(const std::string& name, const models::ModelOptions& options) {
  at::set_num_threads(1);
  install_memory_tracking();
  Sweep sweep(name, options);
  const int64_t count = sweep.allocations_of_a_step();
  ASSERT_EQ(count, sweep.allocations_of_a_step()) << "a step must allocate alike each time";
  int64_t failed = 0;
  for (int64_t n = 1, wrong = 0; wrong < 5; ++n) {
    const std::optional<std::string> found = sweep.fail_at(n);
    if (!found) break;
    ++failed;
    if (found->empty()) continue;
    ++wrong;
    ADD_FAILURE() << "allocation " << n << " of " << count << ": " << *found;
  }
  EXPECT_GT(failed, 50);
  EXPECT_LE(failed, count);
  std::printf("%s: each of %lld allocations failed once\n", name.c_str(), static_cast<long long>(failed));
}

TEST(FaultSweep, GptStep) {
  models::ModelOptions options;
  options.depth = 2;
  options.batch = 2;
  options.seq = 16;
  sweep("gptsmall", options);
}

TEST(FaultSweep, ResnetStep) {
  models::ModelOptions options;
  options.batch = 2;
  options.image_size = 32;
  sweep("resnet18", options);
}

}  // namespace
}  // namespace refrain
