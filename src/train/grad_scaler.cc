#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <torch/optim/optimizer.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "refrain/amp.h"
#include "refrain/error.h"

namespace refrain {
namespace {

void require(bool holds, const char* name, double found, const char* expected) {
  if (!holds) throw InvalidArgument(fmt::format("[refrain::GradScaler] {} {}: expected {}.", name, found, expected));
}

void check_scale(const char* name, double value) {
  require(std::isfinite(value) && value > 0.0, name, value, "a finite number above 0");
}

void check_growth_factor(double value) {
  require(std::isfinite(value) && value > 1.0, "growth_factor", value, "a finite number above 1");
}

void check_backoff_factor(double value) {
  require(value > 0.0 && value < 1.0, "backoff_factor", value, "a number above 0 and below 1");
}

// LibTorch counts in 32 bits.
void check_growth_interval(int64_t value) {
  require(value >= 1 && value <= std::numeric_limits<int32_t>::max(), "growth_interval", static_cast<double>(value),
          "1 to 2147483647");
}

[[noreturn]] void refuse(const char* what, const std::string& message) {
  throw InvalidArgument(fmt::format("[refrain::GradScaler] {}: {}.", what, message));
}

/// A tensor with a copy on every device that needs it, so that each can be written.
class Replicas {
 public:
  explicit Replicas(at::Tensor first) : first_(std::move(first)) {}
  at::Tensor& on(at::Device device) {
    for (auto& [where, tensor] : all_)
      if (where == device) return tensor;
    auto copy = first_.to(device, first_.scalar_type(), /*non_blocking=*/true, /*copy=*/true);
    return all_.emplace_back(device, std::move(copy)).second;
  }
  std::vector<std::pair<at::Device, at::Tensor>> take() && { return std::move(all_); }

 private:
  at::Tensor first_;
  std::vector<std::pair<at::Device, at::Tensor>> all_;
};

/// Gradients of one device and dtype, grouped for the operator that divides them.
struct Group {
  at::Device device;
  at::ScalarType dtype;
  std::vector<at::Tensor> gradients;
};

std::vector<Group> group_gradients(torch::optim::Optimizer& optimizer) {
  std::vector<Group> groups;
  for (auto& parameters : optimizer.param_groups()) {
    for (const auto& parameter : parameters.params()) {
      const at::Tensor& gradient = parameter.grad();
      if (!gradient.defined()) continue;
      if (gradient.scalar_type() == at::kHalf) {
        refuse("unscale_",
               "found a float16 gradient, in which dividing could lose what scaling saved; expected "
               "parameters in float32, and autocast to make float16 of them");
      }
      const at::Tensor values = gradient.is_sparse() ? gradient._values() : gradient;
      auto group = std::find_if(groups.begin(), groups.end(), [&](const Group& g) {
        return g.device == values.device() && g.dtype == values.scalar_type();
      });
      if (group == groups.end()) group = groups.insert(group, {values.device(), values.scalar_type(), {}});
      group->gradients.push_back(values);
    }
  }
  return groups;
}

}  // namespace

GradScaler::GradScaler(const GradScalerOptions& options)
    : scale_value_(options.init_scale()),
      growth_factor_(options.growth_factor()),
      backoff_factor_(options.backoff_factor()),
      growth_interval_(options.growth_interval()),
      enabled_(options.enabled()) {
  check_scale("init_scale", scale_value_);
  check_growth_factor(growth_factor_);
  check_backoff_factor(backoff_factor_);
  check_growth_interval(growth_interval_);
}

at::Tensor GradScaler::scale(const at::Tensor& output) { return scale(std::vector{output}).front(); }

std::vector<at::Tensor> GradScaler::scale(const std::vector<at::Tensor>& outputs) {
  if (!enabled_ || outputs.empty()) return outputs;
  for (const auto& output : outputs)
    if (!output.defined()) refuse("scale", "found an undefined tensor, expected a loss");
  if (!scale_.defined()) {
    const auto options = at::TensorOptions(outputs.front().device());
    scale_ = at::full({}, scale_value_, options.dtype(at::kFloat));
    growth_tracker_ = at::full({}, growth_tracker_value_, options.dtype(at::kInt));
  }
  Replicas scales(scale_);
  std::vector<at::Tensor> scaled;
  for (const auto& output : outputs) scaled.push_back(output * scales.on(output.device()));
  return scaled;
}

void GradScaler::require_scale(const char* what) const {
  if (!scale_.defined()) refuse(what, "nothing was scaled yet; call scale(loss).backward() before it");
}

void GradScaler::unscale_(torch::optim::Optimizer& optimizer) {
  if (!enabled_) return;
  require_scale("unscale_");
  Checks& checks = checks_[&optimizer];
  if (checks.stage == Stage::kUnscaled) refuse("unscale_", "called twice for this optimizer since the last update");
  if (checks.stage == Stage::kStepped) refuse("unscale_", "called after step for this optimizer; call update between");

  at::NoGradGuard no_grad;
  const auto groups = group_gradients(optimizer);
  // float divisions round differently from device to device
  Replicas inverse(scale_.to(at::kDouble).reciprocal().to(at::kFloat)), found_inf(at::zeros_like(scale_));
  for (const auto& group : groups) {
    at::_amp_foreach_non_finite_check_and_unscale_(group.gradients, found_inf.on(group.device),
                                                   inverse.on(group.device));
  }
  checks = {Stage::kUnscaled, std::move(found_inf).take()};
}

bool GradScaler::step(torch::optim::Optimizer& optimizer) {
  if (!enabled_) {
    optimizer.step();
    return true;
  }
  require_scale("step");
  Checks& checks = checks_[&optimizer];
  if (checks.stage == Stage::kStepped) refuse("step", "called twice for this optimizer since the last update");
  if (checks.stage == Stage::kReady) unscale_(optimizer);
  if (checks.found_inf.empty()) refuse("step", "none of the optimizer's parameters has a gradient; run backward first");
  double found = 0.0;
  for (const auto& [device, tensor] : checks.found_inf) found += tensor.item<double>();
  if (found == 0.0) optimizer.step();
  checks.stage = Stage::kStepped;
  return found == 0.0;
}

at::Tensor GradScaler::step(torch::optim::Optimizer& optimizer, std::function<at::Tensor()> closure) {
  if (enabled_) refuse("step", "found a closure, whose gradients would stay scaled; call step without one");
  return optimizer.step(std::move(closure));
}

void GradScaler::update() {
  if (!enabled_) return;
  require_scale("update");
  at::Tensor found;
  for (const auto& [optimizer, checks] : checks_) {
    for (const auto& [device, tensor] : checks.found_inf) {
      const auto here = tensor.to(scale_.device(), tensor.scalar_type(), /*non_blocking=*/true);
      found = found.defined() ? found + here : here;
    }
  }
  if (!found.defined()) refuse("update", "no gradients were checked since the last update; call step before it");
  at::_amp_update_scale_(scale_, growth_tracker_, found, growth_factor_, backoff_factor_, growth_interval_);
  checks_.clear();
}

void GradScaler::update(double new_scale) {
  if (!enabled_) return;
  require_scale("update");
  check_scale("new_scale", new_scale);
  scale_.fill_(new_scale);
  checks_.clear();
}

void GradScaler::update(const at::Tensor& new_scale) {
  if (!enabled_) return;
  require_scale("update");
  if (!new_scale.defined() || new_scale.numel() != 1 || !new_scale.is_floating_point() || new_scale.requires_grad()) {
    refuse("update", "expected a new scale of one floating point element that requires no gradient");
  }
  scale_.copy_(new_scale.reshape({}), /*non_blocking=*/true);
  checks_.clear();
}

double GradScaler::get_scale() const {
  if (!enabled_) return 1.0;
  return scale_.defined() ? scale_.item<double>() : scale_value_;
}

void GradScaler::set_growth_factor(double value) {
  check_growth_factor(value);
  growth_factor_ = value;
}

void GradScaler::set_backoff_factor(double value) {
  check_backoff_factor(value);
  backoff_factor_ = value;
}

void GradScaler::set_growth_interval(int64_t value) {
  check_growth_interval(value);
  growth_interval_ = value;
}

std::optional<GradScalerState> GradScaler::state() const {
  if (!enabled_) return std::nullopt;
  const int64_t tracker = growth_tracker_.defined() ? growth_tracker_.item<int64_t>() : growth_tracker_value_;
  return GradScalerState{get_scale(), growth_factor_, backoff_factor_, growth_interval_, tracker};
}

void GradScaler::load_state(const std::optional<GradScalerState>& state) {
  if (!enabled_) return;
  if (!state)
    refuse("load_state", "found an empty state, from a scaler that is not enabled; expected one of an enabled scaler");
  check_scale("scale", state->scale);
  check_growth_factor(state->growth_factor);
  check_backoff_factor(state->backoff_factor);
  check_growth_interval(state->growth_interval);
  require(state->growth_tracker >= 0 && state->growth_tracker <= std::numeric_limits<int32_t>::max(), "growth_tracker",
          static_cast<double>(state->growth_tracker), "0 to 2147483647");
  scale_value_ = state->scale;
  growth_factor_ = state->growth_factor;
  backoff_factor_ = state->backoff_factor;
  growth_interval_ = state->growth_interval;
  growth_tracker_value_ = state->growth_tracker;
  if (!scale_.defined()) return;
  scale_.fill_(scale_value_);
  growth_tracker_.fill_(growth_tracker_value_);
}

}  // namespace refrain
