#include "memory/optimizer_state.h"

#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>

#include <unordered_map>

namespace refrain {
namespace {

namespace optim = torch::optim;
using Fields = std::vector<std::pair<const char*, at::Tensor>>;

template <typename AdamState>
Fields adam_fields(const AdamState& state) {
  return {{"exp_avg", state.exp_avg()}, {"exp_avg_sq", state.exp_avg_sq()}, {"max_exp_avg_sq", state.max_exp_avg_sq()}};
}

Fields fields(const optim::OptimizerParamState& state) {
  if (const auto* adam = dynamic_cast<const optim::AdamParamState*>(&state)) return adam_fields(*adam);
  if (const auto* adamw = dynamic_cast<const optim::AdamWParamState*>(&state)) return adam_fields(*adamw);
  if (const auto* sgd = dynamic_cast<const optim::SGDParamState*>(&state))
    return {{"momentum_buffer", sgd->momentum_buffer()}};
  if (const auto* adagrad = dynamic_cast<const optim::AdagradParamState*>(&state)) return {{"sum", adagrad->sum()}};
  if (const auto* rms = dynamic_cast<const optim::RMSpropParamState*>(&state))
    return {
        {"square_avg", rms->square_avg()}, {"momentum_buffer", rms->momentum_buffer()}, {"grad_avg", rms->grad_avg()}};
  return {};
}

// Tensors of a parameter's size under these options; negative if they are of an unknown class.
int copies(const optim::OptimizerOptions& options) {
  if (const auto* adam = dynamic_cast<const optim::AdamOptions*>(&options)) return adam->amsgrad() ? 3 : 2;
  if (const auto* adamw = dynamic_cast<const optim::AdamWOptions*>(&options)) return adamw->amsgrad() ? 3 : 2;
  if (const auto* sgd = dynamic_cast<const optim::SGDOptions*>(&options)) return sgd->momentum() != 0 ? 1 : 0;
  if (dynamic_cast<const optim::AdagradOptions*>(&options)) return 1;
  if (const auto* rms = dynamic_cast<const optim::RMSpropOptions*>(&options))
    return 1 + (rms->momentum() > 0 ? 1 : 0) + (rms->centered() ? 1 : 0);
  return -1;
}

}  // namespace

std::vector<std::pair<std::string, at::Tensor>> optimizer_state(
    const optim::Optimizer& optimizer, const std::vector<std::pair<std::string, at::Tensor>>& names) {
  std::unordered_map<const void*, std::string_view> name_of;
  for (const auto& [name, parameter] : names) name_of.emplace(parameter.unsafeGetTensorImpl(), name);
  std::vector<std::pair<std::string, at::Tensor>> found;
  for (const auto& [parameter, state] : optimizer.state()) {
    const auto name = name_of.find(parameter);
    const std::string prefix = name == name_of.end() ? "" : std::string(name->second) + " ";
    for (auto& [field, tensor] : fields(*state))
      if (tensor.defined()) found.emplace_back(prefix + field, std::move(tensor));
  }
  return found;
}

std::optional<Bytes> expected_state_bytes(const optim::Optimizer& optimizer) {
  Bytes sum = 0;
  for (const auto& group : optimizer.param_groups()) {
    const int n = copies(group.options());
    if (n < 0) return std::nullopt;
    for (const auto& parameter : group.params()) sum += n * static_cast<Bytes>(parameter.nbytes());
  }
  return sum;
}

}  // namespace refrain
