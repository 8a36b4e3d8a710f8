#pragma once

#include <ATen/CPUGeneratorImpl.h>

#include "models/zoo.h"
#include "tests/budget/cap_support.h"

namespace refrain_test {

/// What a run leaves behind, name by name, as digests: the weights of a ResNet-50 are 100 MB.
using Trace = std::vector<std::pair<std::string, size_t>>;

inline size_t digest_of(const Tensor& tensor) { return std::hash<std::string>()(bits_of(tensor)); }

class Training {
 public:
  Training(const std::string& model, const refrain::models::ModelOptions& sizes, const std::string& optimizer,
           const refrain::models::Batch& batch, const std::string& strategy = "none")
      : model_(refrain::models::make_model(model, sizes)), batch_(batch) {
    model_->set_strategy(strategy);
    if (optimizer == "adam")
      optimizer_ = std::make_unique<torch::optim::Adam>(parameters(), 0.001);
    else
      optimizer_ = std::make_unique<torch::optim::SGD>(parameters(), 0.01);
    torch::manual_seed(5);
  }

  refrain::models::TrainableModel& model() { return *model_; }
  std::vector<Tensor> parameters() { return model_->module().parameters(); }
  void set_batch(const refrain::models::Batch& batch) { batch_ = batch; }

  /// Gradients of some micro-batches, then the optimizer.
  void step(Trace& trace, int micro_batches) {
    optimizer_->zero_grad();
    for (int micro = 0; micro < micro_batches; ++micro) backward(trace);
    update(trace);
  }

  /// Forward and backward.
  void backward(Trace& trace) {
    auto loss = model_->loss(batch_);
    loss.backward();
    trace.emplace_back("loss", digest_of(loss));
  }

  void zero_grad() { optimizer_->zero_grad(); }

  void update(Trace& trace) {
    for (auto& item : model_->module().named_parameters())
      trace.emplace_back("gradient " + item.key(), digest_of(item.value().grad()));
    optimizer_->step();
    for (auto& item : model_->module().named_buffers())
      trace.emplace_back("buffer " + item.key(), digest_of(item.value()));
    for (auto& item : model_->module().named_parameters()) trace.emplace_back(item.key(), digest_of(item.value()));
    trace.emplace_back("generator", digest_of(at::detail::getDefaultCPUGenerator().get_state()));
  }

  /// All that a step changes but the optimizer's state.
  std::vector<Tensor> state() {
    std::vector<Tensor> all{at::detail::getDefaultCPUGenerator().get_state()};
    for (const auto& tensors : {model_->module().parameters(), model_->module().buffers()})
      for (const auto& tensor : tensors) all.push_back(tensor.detach().clone());
    return all;
  }

  void set_state(const std::vector<Tensor>& all) {
    torch::NoGradGuard no_grad;
    auto generator = at::detail::getDefaultCPUGenerator();
    generator.set_state(all[0]);
    size_t next = 1;
    for (const auto& tensors : {model_->module().parameters(), model_->module().buffers()})
      for (auto tensor : tensors) tensor.copy_(all[next++]);
  }

 private:
  std::unique_ptr<refrain::models::TrainableModel> model_;
  refrain::models::Batch batch_;
  std::unique_ptr<torch::optim::Optimizer> optimizer_;
};

/// @param got  may have ended early.
inline void expect_prefix(const Trace& want, const Trace& got) {
  ASSERT_GE(want.size(), got.size());
  for (size_t i = 0; i < got.size(); ++i)
    EXPECT_TRUE(want[i] == got[i]) << want[i].first << " (entry " << i << ") differs from the plain run";
}

inline void expect_equal(const Trace& want, const Trace& got) {
  EXPECT_EQ(want.size(), got.size());
  expect_prefix(want, got);
}

}  // namespace refrain_test
