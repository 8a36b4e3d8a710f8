#include "refrain/breakdown.h"

#include <fmt/format.h>
#include <torch/nn/module.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "memory/optimizer_state.h"
#include "refrain/error.h"
#include "refrain/explain.h"

namespace refrain {

Bytes ActivationCost::at(int64_t batch) const { return std::llround(fixed + per_example * static_cast<double>(batch)); }

std::optional<int64_t> ActivationCost::first_batch_exceeding(Bytes bytes) const {
  if (at(1) > bytes) return 1;
  if (per_example <= 0) return std::nullopt;
  auto batch = static_cast<int64_t>((static_cast<double>(bytes) - fixed) / per_example);
  while (at(batch) <= bytes) ++batch;
  return batch;
}

ActivationCost measure_activations(const std::function<at::Tensor(int64_t batch)>& loss, int64_t small, int64_t large) {
  if (small < 1 || large <= small)
    throw InvalidArgument(fmt::format(
        "[refrain::measure_activations] found batches {} and {}, expected two of at least 1, the second larger", small,
        large));
  const auto kept = [&](int64_t batch) { return static_cast<double>(saved_tensors(loss, batch).kept_bytes); };
  const double low = kept(small), high = kept(large);
  ActivationCost cost;
  cost.per_example = (high - low) / static_cast<double>(large - small);
  cost.fixed = low - cost.per_example * static_cast<double>(small);
  return cost;
}

MemoryParts estimate_fixed(const torch::nn::Module& module, const torch::optim::Optimizer& optimizer) {
  MemoryParts parts;
  for (const auto& parameter : module.parameters()) {
    parts.parameters += static_cast<Bytes>(parameter.nbytes());
    if (parameter.requires_grad()) parts.gradients += static_cast<Bytes>(parameter.nbytes());
  }
  const auto states = expected_state_bytes(optimizer);
  if (!states)
    throw InvalidArgument(
        "[refrain::estimate_fixed] found an optimizer of an unknown class, expected SGD, Adam, AdamW, RMSprop or Adagrad; "
        "measure a step with a MemoryTimeline instead");
  parts.optimizer_states = *states;
  return parts;
}

Bytes check_fixed_cost(const torch::nn::Module& module, const torch::optim::Optimizer& optimizer, Bytes limit,
                       std::string_view name) {
  const MemoryParts fixed = estimate_fixed(module, optimizer);
  Bytes buffers = 0;
  for (const auto& buffer : module.buffers()) buffers += static_cast<Bytes>(buffer.nbytes());
  const std::pair<const char*, Bytes> parts[] = {{"parameters", fixed.parameters},
                                                 {"buffers", buffers},
                                                 {"gradients", fixed.gradients},
                                                 {"optimizer state", fixed.optimizer_states}};
  const Bytes total = fixed.fixed() + buffers;
  Bytes sum = 0;
  std::string fitting;
  for (const auto& [what, bytes] : parts) {
    sum += bytes;
    const std::string part = fmt::format("{} ({})", what, format_bytes(bytes));
    if (sum < limit) {
      if (bytes > 0) fitting += (fitting.empty() ? "" : ", ") + part;
      continue;
    }
    throw InvalidArgument(
        fmt::format("{} {}: expected more than the {} of weights, gradients and optimizer state: "
                    "{}{} {} not fit, by {}; raise it or choose smaller sizes",
                    name, format_bytes(limit), format_bytes(total), fitting.empty() ? "" : fitting + " would fit, ",
                    part, bytes > 0 && what[0] == 'o' ? "does" : "do", format_bytes(sum - limit)));
  }
  return total;
}

MemoryParts measured_parts(const MemoryTimelineReport& step) {
  MemoryParts parts;
  parts.parameters = step.highest(MemoryKind::kParameter);
  parts.gradients = step.highest(MemoryKind::kGradient);
  parts.optimizer_states = step.highest(MemoryKind::kOptimizerState);
  parts.activations = step.highest(MemoryKind::kActivationKept);
  for (const auto kind : {MemoryKind::kTemporary, MemoryKind::kRecomputed, MemoryKind::kWorkspace, MemoryKind::kOther})
    parts.temporaries += step.peak_of(kind);
  return parts;
}

}  // namespace refrain
