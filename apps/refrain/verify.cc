#include "apps/refrain/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>

#include "apps/refrain/budget_strategy.h"
#include "apps/refrain/steps.h"
#include "apps/refrain/table.h"
#include "refrain/memory.h"
#include "refrain/tape.h"

namespace refrain::cli {
namespace {

using Trace = std::vector<std::pair<std::string, torch::Tensor>>;

/// Weights, buffers and generator as they are, to go back to.
class Snapshot {
 public:
  explicit Snapshot(const torch::nn::Module& module) : live_(module.parameters()), generator_(generator_state()) {
    for (const auto& buffer : module.buffers()) live_.push_back(buffer);
    for (const auto& tensor : live_) kept_.push_back(tensor.detach().clone());
  }
  void restore() {
    torch::NoGradGuard no_grad;
    for (size_t i = 0; i < live_.size(); ++i) live_[i].copy_(kept_[i]);
    set_generator_state(generator_);
  }

 private:
  std::vector<torch::Tensor> live_, kept_;
  torch::Tensor generator_;
};

void descend(torch::nn::Module& module) {
  torch::NoGradGuard no_grad;
  for (auto& parameter : module.parameters()) {
    if (parameter.grad().defined()) parameter.sub_(parameter.grad(), 0.01);
  }
}

Trace run_steps(models::TrainableModel& model, const models::Batch& batch, const std::string& strategy, int steps) {
  auto& module = model.module();
  set_model_strategy(model, strategy);
  Trace trace;
  auto keep = [&](std::string what, const torch::Tensor& t) {
    trace.emplace_back(std::move(what), t.defined() ? t.detach().clone() : t);
  };
  for (int step = 1; step <= steps; ++step) {
    drop_gradients(module);
    auto loss = model.loss(batch);
    loss.backward();
    keep(fmt::format("step {} loss", step), loss);
    for (const auto& item : module.named_parameters()) {
      keep(fmt::format("step {} gradient of {}", step, item.key()), item.value().grad());
    }
    for (const auto& item : module.named_buffers())
      keep(fmt::format("step {} buffer {}", step, item.key()), item.value());
    keep(fmt::format("step {} generator state", step), generator_state());
    descend(module);
  }
  for (const auto& item : module.named_parameters()) keep("final weight " + item.key(), item.value());
  drop_gradients(module);
  return trace;
}

double largest_difference(const torch::Tensor& a, const torch::Tensor& b) {
  constexpr double kInfinite = std::numeric_limits<double>::infinity();
  if (!a.defined() || !b.defined() || a.sizes() != b.sizes()) return kInfinite;
  const double largest = (a.to(torch::kDouble) - b.to(torch::kDouble)).abs().max().item<double>();
  return largest <= kInfinite ? largest : kInfinite;
}

}  // namespace

bool is_bit_equal(const torch::Tensor& a, const torch::Tensor& b) {
  if (a.defined() != b.defined()) return false;
  if (!a.defined()) return true;
  if (a.scalar_type() != b.scalar_type() || a.sizes() != b.sizes()) return false;
  // a gradient may be a tensor that LibTorch knows to be zero, without memory
  const auto x = (a._is_zerotensor() ? a.clone() : a).contiguous(),
             y = (b._is_zerotensor() ? b.clone() : b).contiguous();
  return std::memcmp(x.data_ptr(), y.data_ptr(), x.nbytes()) == 0;
}

double VerifyResult::largest_difference() const {
  double largest = 0.0;
  for (const auto& difference : differences) largest = std::max(largest, difference.largest);
  return largest;
}

std::vector<VerifyResult> verify_strategies(models::TrainableModel& model, const models::Batch& batch,
                                            const std::vector<std::string>& strategies, int steps) {
  Snapshot before(model.module());
  const Trace plain = run_steps(model, batch, "none", steps);
  std::vector<VerifyResult> results;
  for (const auto& strategy : strategies) {
    before.restore();
    std::optional<MemoryBudget> budget;
    if (is_budget(strategy)) {
      set_model_strategy(model, strategy);
      budget.emplace(plan_budget(
                         strategy, [&] { model.loss(batch).backward(); }, model.name())
                         .plan);
      drop_gradients(model.module());
      before.restore();
    }
    const int64_t replayed = tape_stats().replayed_ops;
    const Trace other = run_steps(model, batch, strategy, steps);
    budget.reset();
    VerifyResult result{strategy, static_cast<int64_t>(plain.size()), tape_stats().replayed_ops - replayed, {}};
    for (size_t i = 0; i < plain.size(); ++i) {
      if (is_bit_equal(plain[i].second, other[i].second)) continue;
      result.differences.push_back({plain[i].first, largest_difference(plain[i].second, other[i].second)});
    }
    results.push_back(std::move(result));
  }
  before.restore();
  return results;
}

int run_verify(const VerifyArgs& args) {
  check_can_write(args.json, "--json");
  if (is_budget(args.strategy)) install_memory_tracking();
  const auto names = args.model.name == "all" ? models::model_names() : std::vector<std::string>{args.model.name};
  Table table({"model", "strategy", "tensors", "replayed ops", "largest difference", "bit-equal"});
  Json report = Json::array();
  std::string details;
  bool is_all_equal = true;
  for (const auto& name : names) {
    ModelArgs model_args = args.model;
    model_args.name = name;
    auto model = build_model(model_args);
    const auto strategies = choose_strategies(*model, args.strategy);
    torch::manual_seed(args.model.seed);
    for (const auto& result :
         verify_strategies(*model, model->synthetic_batch(args.model.seed), strategies, args.steps)) {
      is_all_equal = is_all_equal && result.is_bit_equal();
      table.add({name, result.strategy, fmt::format("{}", result.tensors), fmt::format("{}", result.replayed_ops),
                 fmt::format("{:.3g}", result.largest_difference()), result.is_bit_equal() ? "yes" : "NO"});
      Json differences = Json::array();
      for (const auto& d : result.differences) differences.push_back({{"what", d.what}, {"largest", d.largest}});
      report.push_back({{"model", name},
                        {"strategy", result.strategy},
                        {"steps", args.steps},
                        {"tensors", result.tensors},
                        {"replayed_ops", result.replayed_ops},
                        {"bit_equal", result.is_bit_equal()},
                        {"largest_difference", result.largest_difference()},
                        {"differences", differences}});
      if (!result.is_bit_equal()) {
        details += fmt::format("{} {}: {} of {} tensors differ, first: {}\n", name, result.strategy,
                               result.differences.size(), result.tensors, result.differences.front().what);
      }
    }
  }
  if (args.json != "-") fmt::print("{}{}", table.str(), details);
  Json document = new_document("verify");
  document["machine"] = machine_json();
  document["results"] = report;
  write_json(args.json, document);
  return is_all_equal ? kOk : kDiffers;
}

}  // namespace refrain::cli
