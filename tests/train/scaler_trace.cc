// Trains with refrain::GradScaler as a plan on standard input says, and writes what it did after each step: the C++
// half of grad_scaler_test.py, which does the same with torch.amp.GradScaler.
#include <torch/torch.h>

#include <iostream>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>

#include "refrain/amp.h"

using Json = nlohmann::json;

/// LibTorch's own rounds differently in C++ and in Python.
void clip(const torch::Tensor& gradient, double largest) {
  const auto norm = gradient.norm();
  gradient.mul_((torch::full_like(norm, largest) / (norm + 1e-6)).clamp_max(1));
}

int main() {
  const Json plan = Json::parse(std::cin);
  const auto options = refrain::GradScalerOptions()
                           .init_scale(plan.at("init_scale"))
                           .growth_factor(plan.at("growth_factor"))
                           .backoff_factor(plan.at("backoff_factor"))
                           .growth_interval(plan.at("growth_interval"));
  refrain::GradScaler scaler(options);
  const Json& steps = plan.at("steps");
  std::vector<torch::Tensor> weights;
  std::vector<std::unique_ptr<torch::optim::SGD>> optimizers;
  for (size_t i = 0; i < steps.at(0).at("bad").size(); ++i) {
    weights.push_back(torch::arange(4, torch::kFloat).set_requires_grad(true));
    optimizers.push_back(std::make_unique<torch::optim::SGD>(std::vector{weights.back()}, 0.01));
  }

  Json seen = Json::array();
  for (size_t step = 0; step < steps.size(); ++step) {
    const Json& what = steps[step];
    std::vector<torch::Tensor> losses;
    for (size_t i = 0; i < weights.size(); ++i) {
      auto x = torch::arange(1, 5, torch::kFloat) / static_cast<double>(step + i + 1);
      const std::string bad = what.at("bad")[i];
      if (bad == "inf") x[0] = std::numeric_limits<double>::infinity();
      if (bad == "nan") x[2] = std::numeric_limits<double>::quiet_NaN();
      losses.push_back((weights[i] * x).sum());
    }
    for (auto& optimizer : optimizers) optimizer->zero_grad();
    for (const auto& loss : scaler.scale(losses)) loss.backward();
    Json stepped = Json::array(), after = Json::array();
    for (size_t i = 0; i < optimizers.size(); ++i) {
      if (!plan.at("clip").is_null()) {
        scaler.unscale_(*optimizers[i]);
        clip(weights[i].grad(), plan.at("clip"));
      }
      stepped.push_back(scaler.step(*optimizers[i]));
      for (int64_t k = 0; k < 4; ++k) after.push_back(weights[i][k].item<float>());
    }
    if (what.contains("new_scale")) {
      scaler.update(what.at("new_scale").get<double>());
    } else {
      scaler.update();
    }
    if (what.value("reload", false)) {
      refrain::GradScaler next;
      next.load_state(scaler.state());
      scaler = std::move(next);
    }
    const auto state = *scaler.state();
    seen.push_back(
        {{"scale", state.scale}, {"growth_tracker", state.growth_tracker}, {"stepped", stepped}, {"weights", after}});
  }
  std::cout << seen.dump() << "\n";
}
