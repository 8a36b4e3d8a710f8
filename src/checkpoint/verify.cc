#include "refrain/verify.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>

#include "intercept/graph_leaves.h"
#include "intercept/rng.h"
#include "refrain/error.h"
#include "refrain/tape.h"

namespace refrain::detail {
namespace {

/// Buffers, inputs and generators, to be restored.
class Checkpointed {
 public:
  explicit Checkpointed(const Verified& verified) : buffers_(verified.buffers), generators_(verified.generators) {
    add_default_generators();
    for (const auto* list : {&verified.buffers, &verified.inputs})
      for (const auto& [name, tensor] : *list)
        if (tensor.defined()) saved_.push_back({tensor, tensor.detach().clone(), tensor._version()});
    std::lock_guard lock(tape::rng_mutex());
    for (const auto& generator : generators_) generator_states_.push_back(tape::read_rng(generator));
  }
  ~Checkpointed() { restore(); }
  Checkpointed(const Checkpointed&) = delete;
  Checkpointed& operator=(const Checkpointed&) = delete;

  void restore() {
    at::NoGradGuard no_grad;
    for (auto& [tensor, bytes, version] : saved_) {
      if (tensor._version() != version || !tensor.requires_grad()) tensor.copy_(bytes);
      version = tensor._version();
    }
    std::lock_guard lock(tape::rng_mutex());
    for (const auto& state : generator_states_) state->set();
  }

  // Generators of the CPU, and of every device of an accelerator that is in use.
  void add_default_generators() {
    auto& context = at::globalContext();
    generators_.insert(generators_.begin(), at::detail::getDefaultCPUGenerator());
    const auto accelerator = at::getAccelerator();
    if (!accelerator) return;
    const auto& hooks = context.getAcceleratorHooksInterface(accelerator);
    if (!hooks.isAvailable()) return;
    for (at::DeviceIndex i = 0; i < hooks.deviceCount(); ++i)
      if (hooks.hasPrimaryContext(i)) generators_.push_back(context.defaultGenerator({*accelerator, i}));
  }

  void append_present(NamedTensors& to) const {
    for (const auto& [name, buffer] : buffers_) to.emplace_back("buffer " + name, buffer.clone());
    std::lock_guard lock(tape::rng_mutex());
    for (const auto& generator : generators_)
      to.emplace_back("generator " + generator.device().str(), tape::read_rng(generator)->state());
  }

 private:
  struct Saved {
    at::Tensor tensor, bytes;
    int64_t version;
  };
  NamedTensors buffers_;
  std::vector<at::Generator> generators_;
  std::vector<Saved> saved_;
  std::vector<std::shared_ptr<const tape::RngState>> generator_states_;
};

std::string leaf_name(const at::Tensor& leaf, const Verified& verified, size_t position) {
  for (const auto* list : {&verified.inputs, &verified.parameters})
    for (const auto& [name, tensor] : *list)
      if (tensor.is_same(leaf)) return name;
  return fmt::format("captured leaf {}", position);
}

// All results of one run.
NamedTensors run_once(Verified& verified, const CheckpointOptions* options, const Checkpointed& state) {
  verified.calls = 0;
  auto outputs = verified.run(options);
  NamedTensors left;
  std::vector<at::Tensor> roots, weights;
  auto numbers = at::make_generator<at::CPUGeneratorImpl>(20261125);
  for (size_t i = 0; i < outputs.size(); ++i) {
    const auto& output = outputs[i];
    left.emplace_back(fmt::format("output {}", i), output.defined() ? output.detach().clone() : output);
    if (!output.defined() || !output.requires_grad()) continue;
    roots.push_back(output);
    weights.push_back(at::randn(output.sizes(), numbers, at::dtype(at::kDouble)).to(output.options()));
  }
  if (roots.empty())
    throw InvalidArgument(fmt::format(
        "[refrain::verify_checkpoint] none of the {} tensors that the function returned requires a gradient, so there is "
        "none to compare. Give it an input or a parameter that does, with gradients enabled.",
        outputs.size()));
  std::vector<at::Tensor> leaves;
  auto inputs = verified.inputs;
  for (const auto& [name, input] : inputs)
    if (input.defined() && input.requires_grad()) leaves.push_back(input);
  for (const auto& leaf : tape::graph_leaves(roots))
    if (std::none_of(leaves.begin(), leaves.end(), [&](const auto& known) { return known.is_same(leaf); }))
      leaves.push_back(leaf);
  auto gradients = torch::autograd::grad(roots, leaves, weights, /*retain_graph=*/false, /*create_graph=*/false,
                                         /*allow_unused=*/true);
  for (size_t i = 0; i < leaves.size(); ++i)
    left.emplace_back("gradient of " + leaf_name(leaves[i], verified, i), gradients[i]);
  state.append_present(left);
  return left;
}

// A gradient may be a tensor that LibTorch knows to be zero, without memory.
at::Tensor with_bytes(const at::Tensor& tensor) {
  return (tensor._is_zerotensor() ? tensor.clone() : tensor).cpu().contiguous();
}

bool same_bytes(const at::Tensor& a, const at::Tensor& b) {
  const auto x = with_bytes(a), y = with_bytes(b);
  return x.nbytes() == 0 || std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0;
}

VerifiedTensor compare(const std::string& name, const at::Tensor& plain_tensor, const at::Tensor& other) {
  VerifiedTensor row{name, true, 0, 0};
  if (!plain_tensor.defined() && !other.defined()) return row;
  const bool comparable = plain_tensor.defined() && other.defined() && plain_tensor.sizes() == other.sizes() &&
                          plain_tensor.scalar_type() == other.scalar_type();
  if (!comparable) {
    row.bit_equal = false;
    row.max_abs = row.max_rel = std::numeric_limits<double>::infinity();
    return row;
  }
  const auto dense = [](const at::Tensor& tensor) {
    return tensor.layout() == at::kStrided ? tensor.resolve_conj().resolve_neg() : tensor.to_dense();
  };
  const auto a = dense(plain_tensor), b = dense(other);
  row.bit_equal = same_bytes(a, b);
  if (row.bit_equal) return row;
  const auto wide = a.is_complex() ? at::kComplexDouble : at::kDouble;
  const auto difference = (a.to(wide) - b.to(wide)).abs();
  row.max_abs = difference.max().item<double>();
  const auto size = a.to(wide).abs();
  row.max_rel = at::where(size > 0, difference / size, at::zeros_like(difference)).max().item<double>();
  return row;
}

/// Sets `set_check_inputs` while alive.
class CheckInputs {
 public:
  CheckInputs() : before_(set_check_inputs(true)) {}
  ~CheckInputs() { set_check_inputs(before_); }
  CheckInputs(const CheckInputs&) = delete;
  CheckInputs& operator=(const CheckInputs&) = delete;

 private:
  const bool before_;
};

VerifiedRun verify_run(Verified& verified, const CheckpointOptions& options, Checkpointed& state,
                       const NamedTensors& expected) {
  VerifiedRun run;
  state.restore();
  const CheckInputs check;
  try {
    const auto left = run_once(verified, &options, state);
    for (size_t i = 0; i < std::min(left.size(), expected.size()); ++i)
      run.tensors.push_back(compare(expected[i].first, expected[i].second, left[i].second));
    if (left.size() != expected.size())
      run.error = fmt::format("{} tensors to compare, {} in the baseline", left.size(), expected.size());
  } catch (const std::exception& failure) {
    run.error = failure.what();
  }
  run.calls = verified.calls;
  return run;
}

}  // namespace

VerifyReport verify(const CheckpointOptions& options, Verified& verified) {
  Checkpointed state(verified);
  VerifyReport report;
  const auto expected = run_once(verified, nullptr, state);
  report.plain_calls = verified.calls;
  report.replay =
      verify_run(verified, CheckpointOptions(options).recompute_mode(RecomputeMode::kReplayOperators).context_fn({}),
                 state, expected);
  report.rerun = verify_run(
      verified, CheckpointOptions(options).recompute_mode(RecomputeMode::kRerunFunction).policy({}), state, expected);
  return report;
}

}  // namespace refrain::detail

namespace refrain {

bool VerifiedRun::bit_equal() const {
  return error.empty() && std::all_of(tensors.begin(), tensors.end(), [](const auto& row) { return row.bit_equal; });
}

std::string VerifyReport::text() const {
  std::string text = fmt::format("baseline {} call{}\n", plain_calls, plain_calls == 1 ? "" : "s");
  for (const auto& [name, run] : {std::pair<const char*, const VerifiedRun&>("replay", replay), {"rerun", rerun}}) {
    double abs = 0, rel = 0;
    for (const auto& row : run.tensors) {
      abs = std::max(abs, row.max_abs);
      rel = std::max(rel, row.max_rel);
    }
    text +=
        fmt::format("{:8} {} call{}, {} tensors: {}\n", name, run.calls, run.calls == 1 ? "" : "s", run.tensors.size(),
                    !run.error.empty() ? "failed: " + run.error
                    : run.bit_equal()  ? "all equal to the bit"
                                       : fmt::format("largest difference {:.3g}, relative {:.3g}", abs, rel));
    for (const auto& row : run.tensors)
      if (!row.bit_equal)
        text += fmt::format("         {}: {:.3g}, relative {:.3g}\n", row.name, row.max_abs, row.max_rel);
  }
  return text;
}

}  // namespace refrain
