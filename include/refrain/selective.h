#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "refrain/api.h"
#include "refrain/bytes.h"
#include "refrain/checkpoint.h"

/// Adds selective checkpointing: a *policy* looks at each operator of a region and chooses whether its results are kept
/// for backward or recomputed. Set one with `CheckpointOptions().policy(save_compute_intensive())`.
///
/// - A kept result costs its bytes from forward until the last operator or saved tensor that reads it is done with it.
/// - A result that nothing in backward needs is not kept, whatever the policy answers.
/// - These work as without a policy: any number of backwards, double backward, operators in place (a kept result that
///   is overwritten stays kept as what it became), autocast and random operators.
///
/// Source: torch.utils.checkpoint's selective mode; names and policies over them from JAX.
namespace refrain {

/// Decides what happens to the results of one operator: the answer of a policy. `must` and `prefer` are the same until
/// a memory plan is in force, which may overrule `prefer`.
enum class CheckpointPolicy : int {
  kMustSave,
  kPreferSave,
  kMustRecompute,
  /// Also the answer of the ready policies for operators that they do not name.
  kPreferRecompute,
  /// Stores the bytes in the region's store (refrain/offload.h) and fetches them in backward. What the store declines
  /// is kept, as by `kMustSave`.
  kOffload,
};

/// Describes a tensor to a policy.
struct REFRAIN_API TensorInfo {
  std::vector<int64_t> sizes;
  at::ScalarType dtype;
  at::Device device;
  /// Returns the number of elements times the size of one.
  [[nodiscard]] Bytes bytes() const;
};

/// Describes one operator call of a region to its policy, after the operator has run. Valid only during the policy's
/// call.
class REFRAIN_API OpContext {
 public:
  /// Returns the operator's name, such as "aten::mm".
  std::string_view name() const;
  /// Returns the operator's overload, such as "Tensor"; "" for the only or default one.
  std::string_view overload() const;
  /// Returns whether the operator draws from a generator.
  bool random() const;
  /// Returns how many operators of this region the policy was asked about before this one.
  int64_t position() const;
  /// Returns how often this region has asked for `key` before: 0, 1, 2, ... For policies that count.
  int64_t count(std::string_view key) const;
  /// Returns the tensors among the arguments, lists flattened, undefined ones left out.
  /// Cost: some allocations.
  std::vector<TensorInfo> inputs() const;
  /// Returns the tensors among the results, likewise.
  std::vector<TensorInfo> outputs() const;
  /// Returns the bytes of all results together.
  Bytes output_bytes() const;
  /// Returns the path of the open `ModuleScope`s, such as "encoder.layer1", or "".
  std::string_view scope() const;
  /// Returns the name given by `refrain::checkpoint_name`; "" while the operator itself is judged.
  std::string_view checkpoint_name() const;

  /// For the library itself.
  class Call;
  /// For the library itself.
  explicit OpContext(Call& call) : call_(&call) {}

 private:
  Call* call_;
};

/// Saves the results of these operators.
/// @param ops  "namespace::name" (all overloads) or "namespace::name.overload".
/// @throws InvalidArgument  for a name that LibTorch does not know now, with the nearest ones: a name that never
///                          matches would save nothing and say nothing. Register custom operators first.
[[nodiscard]] REFRAIN_API Policy save_ops(const std::vector<std::string>& ops);

/// Saves matrix products: mm, addmm, bmm, baddbmm, addbmm, addmv, mv, dot, _scaled_mm, linear.
[[nodiscard]] REFRAIN_API Policy save_matmuls();

/// Saves what `save_matmuls` saves, convolutions, attention (flash, efficient, cuDNN, CPU) and upsample_bilinear2d: the
/// list that torch.compile's partitioner calls compute intensive.
[[nodiscard]] REFRAIN_API Policy save_compute_intensive();

/// Saves what `save_matmuls` saves, by its name in JAX.
[[nodiscard]] REFRAIN_API Policy dots_saveable();

/// Saves nothing.
[[nodiscard]] REFRAIN_API Policy nothing_saveable();

/// Saves the results of all operators.
[[nodiscard]] REFRAIN_API Policy everything_saveable();

/// Saves every second matrix product of a region, from its first.
[[nodiscard]] REFRAIN_API Policy save_every_second_matmul();

/// Offloads the results of these operators: answers `kOffload`.
/// @param ops  as for `save_ops`.
/// @throws InvalidArgument  as `save_ops`.
[[nodiscard]] REFRAIN_API Policy offload_ops(const std::vector<std::string>& ops);

/// Offloads what `save_compute_intensive` saves; the rest, cheap to compute, is recomputed.
[[nodiscard]] REFRAIN_API Policy offload_compute_intensive();

/// Offloads the values that `checkpoint_name` gave one of these names.
/// @param names  those to offload.
[[nodiscard]] REFRAIN_API Policy offload_only_these_names(const std::vector<std::string>& names);

/// Offloads the results of operators whose results together have at least so many bytes.
/// @param bytes  0 or more.
/// @throws InvalidArgument  if `bytes` is below 0.
[[nodiscard]] REFRAIN_API Policy offload_larger_than(Bytes bytes);

/// Saves the results of random operators, so that nothing is drawn a second time.
[[nodiscard]] REFRAIN_API Policy save_random();

/// Saves the values that `checkpoint_name` gave one of these names.
/// @param names  those to save.
[[nodiscard]] REFRAIN_API Policy save_only_these_names(const std::vector<std::string>& names);

/// Saves the values that `checkpoint_name` gave a name that is none of these.
/// @param names  those not to save.
[[nodiscard]] REFRAIN_API Policy save_any_names_but_these(const std::vector<std::string>& names);

/// Asks `first`, and where that answers `kPreferRecompute`, `second`.
/// @param first   decides, unless it answers `kPreferRecompute`.
/// @param second  decides then.
[[nodiscard]] REFRAIN_API Policy and_then(Policy first, Policy second);

/// Asks the policy of the longest prefix of `OpContext::scope()` that is listed.
/// @param policies   prefixes and their policies; "encoder" matches "encoder" and "encoder.x".
/// @param otherwise  asked where no prefix matches.
[[nodiscard]] REFRAIN_API Policy by_module(std::vector<std::pair<std::string, Policy>> policies,
                                           Policy otherwise = nothing_saveable());

/// Names `x` for the policy of the innermost open region, which is asked at once. Without an open region, or without a
/// policy, nothing happens.
/// @param x     a tensor that the region computed.
/// @param name  what `OpContext::checkpoint_name` returns.
/// @return  `x`.
REFRAIN_API at::Tensor checkpoint_name(const at::Tensor& x, std::string_view name);

/// Decides for `x` without asking the region's policy. Without an open region nothing happens.
/// @param x       a tensor that the region computed.
/// @param policy  `kMustSave`, `kPreferSave`: `x` is kept; `kOffload`: it is offloaded; the others: it is recomputed.
/// @return  `x`.
REFRAIN_API at::Tensor set_policy(const at::Tensor& x, CheckpointPolicy policy);

/// Frees the storage of a region's output where it is only *saved*; readers rematerialize it.
///
/// - Operators after it that keep their input for backward, in another region or in none, have it recomputed in time by
///   its region, which then recomputes what its own backward needs as well.
/// - Saves the bytes of `y` from the time the last handle goes until backward needs it.
/// - Call it before the next operator.
/// - Nothing happens if no region computed `y`, or for `kRerunFunction`.
/// - Do not discard the outputs of a whole chain of regions that feed each other: the first recomputation would
///   rematerialize the chain, so that the peak is that of the baseline.
///
/// @param y  a tensor that a region returned.
/// @return  `y`.
/// Source: Megatron-LM's output discarding.
REFRAIN_API at::Tensor discard_output(const at::Tensor& y);

/// Names what runs on this thread while it lives, for `OpContext::scope`, `MemoryTimeline`, and the operators of a
/// `profile`, those of backward included.
/// Cost: a string append.
class REFRAIN_API ModuleScope {
 public:
  explicit ModuleScope(std::string_view name);
  ~ModuleScope();
  ModuleScope(const ModuleScope&) = delete;
  ModuleScope& operator=(const ModuleScope&) = delete;

 private:
  size_t length_;  ///< of the path before
};

/// Returns the path of this thread's open `ModuleScope`s, such as "encoder.layer1", or "". Valid until one opens or
/// closes.
[[nodiscard]] REFRAIN_API std::string_view module_scope() noexcept;

}  // namespace refrain
