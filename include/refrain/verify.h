#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "refrain/api.h"
#include "refrain/checkpoint.h"

/// Verifies that a function is the same under `checkpoint`. It is gradient checking, as in Ceres Solver, but against
/// the baseline.
namespace refrain {

/// Compares one tensor of a run, b, with that of the baseline, a.
struct VerifiedTensor {
  /// "output 0", "gradient of input 1", "gradient of 0.weight", "buffer running_mean", "generator cpu".
  std::string name;
  bool bit_equal = true;
  double max_abs = 0;  ///< largest |a - b|; infinite if the shapes or dtypes differ, or one is undefined
  double max_rel = 0;  ///< largest |a - b| / |a|, over a != 0
};

/// Compares the run of one recompute mode with the baseline.
struct REFRAIN_API VerifiedRun {
  std::vector<VerifiedTensor> tensors;
  int64_t calls = 0;  ///< of the function, backward included: baseline and replay 1, rerun 2
  std::string error;  ///< what it threw, or ""

  /// Returns whether the run threw nothing and all `tensors` are equal to the bit.
  [[nodiscard]] bool bit_equal() const;
};

/// Holds what `verify_checkpoint` found.
struct REFRAIN_API VerifyReport {
  VerifiedRun replay, rerun;
  int64_t plain_calls = 0;  ///< of the function in the baseline

  /// Returns whether both runs are equal to the baseline, to the bit.
  [[nodiscard]] bool bit_equal() const { return replay.bit_equal() && rerun.bit_equal(); }
  /// Returns a line for each recompute mode with its largest differences, and one for each tensor that differs.
  [[nodiscard]] std::string text() const;
};

namespace detail {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

/// Holds what `verify_checkpoint` runs and compares.
struct Verified {
  /// Runs the function, with null as the baseline, else under these options; returns the tensors of the result.
  std::function<std::vector<at::Tensor>(const CheckpointOptions*)> run;
  NamedTensors inputs, parameters, buffers;
  std::vector<at::Generator> generators;
  int64_t calls = 0;  ///< of the function in the last run
};

/// Implements `verify_checkpoint`.
[[nodiscard]] REFRAIN_API VerifyReport verify(const CheckpointOptions& options, Verified& verified);

/// Adds the parameters and buffers of `module` to `verified`.
template <typename M>
void collect_state(M& module, Verified& verified) {
  for (auto& item : module.named_parameters()) verified.parameters.emplace_back(item.key(), item.value());
  for (auto& item : module.named_buffers()) verified.buffers.emplace_back(item.key(), item.value());
}

}  // namespace detail

/// Runs `fn(args...)` three times with its backward: as the baseline, with `kReplayOperators` and with
/// `kRerunFunction`, each from the same buffers and random state, and compares outputs, gradients, buffers and
/// generators.
///
/// - What regions read from outside is checked meanwhile (`set_check_inputs`): memory overwritten through a pointer
///   that the function or a hook kept is an error that names the tensor.
/// - Gradients are of the sum of all floating-point results times fixed random numbers, with respect to every leaf that
///   the result depends on: inputs, parameters of `fn` if it is a module, and captured ones.
/// - `.grad` is not touched; buffers and generators are restored, so that training continues as if nothing had been
///   run.
/// - BatchNorm under `kRerunFunction` is rightly reported: its statistics move twice.
/// - What the baseline throws passes through; what the other runs throw is reported.
///
/// @param options  of the replay run (policy included) and of the rerun (policy left out).
/// @param fn       as for `checkpoint`. Buffers are those of `fn` if it is a module or holder; others are not seen.
/// @param args     as for `checkpoint`.
/// @return  each run compared with the baseline.
/// @throws InvalidArgument  if `fn` is null or no result requires a gradient.
/// Cost: three forwards and backwards, and copies of all compared tensors.
/// Threads: as the function.
template <typename F, typename... Args>
[[nodiscard]] VerifyReport verify_checkpoint(const CheckpointOptions& options, F&& fn, Args&&... args) {
  detail::refuse_null(fn, args...);
  detail::Verified verified;
  const auto count = [&](auto&... a) -> decltype(auto) {
    ++verified.calls;
    return detail::call(fn, a...);
  };
  verified.run = [&](const CheckpointOptions* under) {
    // Copies: what the function does to its arguments must not reach the next run. (The bytes of tensors are put back.)
    auto mine = std::tuple<detail::Kept<Args>...>(detail::Kept<Args>(detail::Keep(), args)...);
    std::vector<at::Tensor> results;
    const auto note = detail::Overloaded{[&](at::Tensor& tensor) { results.push_back(tensor); }, [](at::Generator&) {}};
    std::apply(
        [&](auto&... kept) {
          auto result = under ? checkpoint(*under, count, kept.template as<std::remove_reference_t<Args>&>()...)
                              : count(kept.template as<std::remove_reference_t<Args>&>()...);
          detail::visit_tensors_in(result, note);
        },
        mine);
    return results;
  };
  auto named = std::tuple<detail::Kept<Args>...>(detail::Kept<Args>(detail::Keep(), args)...);
  detail::visit_tensors_in(
      named, detail::Overloaded{[&](at::Tensor& tensor) {
                                  verified.inputs.emplace_back("input " + std::to_string(verified.inputs.size()),
                                                               tensor);
                                },
                                [&](at::Generator& generator) { verified.generators.push_back(generator); }});
  if constexpr (requires { fn->named_buffers(); })
    detail::collect_state(*fn, verified);
  else if constexpr (requires { fn.named_buffers(); })
    detail::collect_state(fn, verified);
  return detail::verify(options, verified);
}

/// Verifies `fn(args...)` with default options.
/// @param fn    as above.
/// @param args  as above.
/// @return  each run compared with the baseline.
/// @throws InvalidArgument  if `fn` is null or no result requires a gradient.
template <typename F, typename... Args>
requires(!std::is_same_v<std::remove_cvref_t<F>, CheckpointOptions>) [[nodiscard]] VerifyReport
    verify_checkpoint(F&& fn, Args&&... args) {
  return verify_checkpoint(CheckpointOptions(), std::forward<F>(fn), std::forward<Args>(args)...);
}

}  // namespace refrain
