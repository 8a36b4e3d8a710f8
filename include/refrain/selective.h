#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "refrain/checkpoint.h"

/// Selective checkpointing: a *policy* looks at each operator of a region and says whether its results are kept for
/// backward or computed again. Give one with `CheckpointOptions().policy(save_compute_intensive())`.
///
/// A kept result costs its bytes from forward until the last operator or saved tensor that reads it is done with it; a
/// result that nothing in backward needs is not kept, whatever the policy says. Any number of backwards, double backward,
/// operators in place (a kept result that is overwritten stays kept as what it became), autocast and random operators all work as
/// without a policy.
/// Source: torch.utils.checkpoint's selective mode; names and policies over them from JAX.
namespace refrain {

/// A policy's answer. `must` and `prefer` are the same until a memory plan is in force: it may overrule `prefer`.
enum class CheckpointPolicy : int {
  kMustSave,
  kPreferSave,
  kMustRecompute,
  kPreferRecompute,  ///< also what the ready policies answer for operators they do not name
  /// Keep the bytes in the region's store (refrain/offload.h) and fetch them in backward; what the store declines: as `kMustSave`.
  kOffload,
};

/// What a policy sees of a tensor.
struct TensorInfo {
  std::vector<int64_t> sizes;
  at::ScalarType dtype;
  at::Device device;
  int64_t bytes() const;  ///< elements times element size
};

/// One operator call of a region, after it has run. Valid only during the policy's call.
class OpContext {
 public:
  std::string_view name() const;      ///< "aten::mm"
  std::string_view overload() const;  ///< "Tensor", or "" for the only or default one
  bool random() const;                ///< draws from a generator
  int64_t position() const;           ///< operators of this region asked about before this one
  /// How often this region has asked for `key` before: 0, 1, 2, ... For policies that count.
  int64_t count(std::string_view key) const;
  /// Tensors among the arguments, lists flattened, undefined ones left out. Cost: some allocations.
  std::vector<TensorInfo> inputs() const;
  std::vector<TensorInfo> outputs() const;  ///< likewise among the results
  int64_t output_bytes() const;             ///< of all results together
  std::string_view scope() const;           ///< path of the open `ModuleScope`s, "encoder.layer1", or ""
  std::string_view checkpoint_name() const; ///< given by `checkpoint_name`; "" while the operator itself is judged

  class Call;  ///< the tape's side of it
  explicit OpContext(Call& call) : call_(&call) {}

 private:
  Call* call_;
};

/// Saves the results of these operators: "namespace::name" (all overloads) or "namespace::name.overload".
/// @throws InvalidArgument on a name that LibTorch does not know now, with the nearest ones: a name that never matches
///         would save nothing and say nothing. Register custom operators first.
Policy save_ops(const std::vector<std::string>& ops);
/// Matrix products: mm, addmm, bmm, baddbmm, addmv, mv, dot, _scaled_mm, linear.
Policy save_matmuls();
/// `save_matmuls`, convolutions, attention (flash, efficient, cuDNN, CPU) and upsample_bilinear2d: the list that
/// torch.compile's partitioner calls compute intensive.
Policy save_compute_intensive();
/// JAX's name for `save_matmuls`.
Policy dots_saveable();
Policy nothing_saveable();
Policy everything_saveable();
/// Every second matrix product of a region, from its first.
Policy save_every_second_matmul();
/// `kOffload` for these operators; names as for `save_ops`. @throws InvalidArgument likewise
Policy offload_ops(const std::vector<std::string>& ops);
/// `kOffload` for what `save_compute_intensive` saves; the rest, cheap to compute, is computed again.
Policy offload_compute_intensive();
/// `kOffload` for values named by `checkpoint_name`.
Policy offload_only_these_names(const std::vector<std::string>& names);
/// `kOffload` for operators whose results together have at least so many bytes. @throws InvalidArgument  below 0
Policy offload_larger_than(int64_t bytes);
/// Random operators, so that nothing is drawn again.
Policy save_random();
/// Values named by `checkpoint_name`.
Policy save_only_these_names(const std::vector<std::string>& names);
Policy save_any_names_but_these(const std::vector<std::string>& names);

/// `first` decides; where it answers `kPreferRecompute`, `second` does.
Policy and_then(Policy first, Policy second);
/// The policy of the longest prefix of `OpContext::scope()` that is listed ("encoder" matches "encoder" and "encoder.x"),
/// else `otherwise`.
Policy by_module(std::vector<std::pair<std::string, Policy>> policies, Policy otherwise = nothing_saveable());

/// Names `x` for the policy of the innermost open region, which is asked at once. Returns `x`. Without an open region, or
/// without a policy: nothing happens.
at::Tensor checkpoint_name(const at::Tensor& x, std::string_view name);
/// The same without asking: `x` is kept (`kMustSave`, `kPreferSave`), offloaded, or computed again.
at::Tensor set_policy(const at::Tensor& x, CheckpointPolicy policy);

/// Lets go of `y`, which a region returned, where it is only *saved*: operators after it that keep their input for backward, in
/// another region or in none, refill it in time from its region (which then brings back what its own backward needs as
/// well). Returns `y`; call it before the next operator. Nothing happens if no region computed `y`, or for `kRerunFunction`.
///
/// Saves the bytes of `y` from the time the last handle goes until backward needs it. Do not discard the outputs of a whole
/// row of regions that feed each other: the first refill would bring back the row, so that the peak is that of a plain run.
/// Source: Megatron-LM's output discarding.
at::Tensor discard_output(const at::Tensor& y);

/// A name on this thread while it lives, for `OpContext::scope`, `MemoryTimeline`, and the operators of a `profile`, those
/// of backward included. Cost: a string append.
class ModuleScope {
 public:
  explicit ModuleScope(std::string_view name);
  ~ModuleScope();
  ModuleScope(const ModuleScope&) = delete;
  ModuleScope& operator=(const ModuleScope&) = delete;

 private:
  size_t length_;  ///< of the path before
};

/// Path of this thread's open `ModuleScope`s, "encoder.layer1", or "". Valid until one opens or closes.
std::string_view module_scope() noexcept;

}  // namespace refrain
