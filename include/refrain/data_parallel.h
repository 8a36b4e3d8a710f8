#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "refrain/api.h"
#include "refrain/bytes.h"
#include "refrain/checkpoint.h"
#include "refrain/distributed.h"
#include "refrain/nn.h"

/// One copy of a model on each rank, each with its share of the batch; gradients are averaged during backward.
namespace refrain {

/// How gradients are averaged. Setters chain. The same on all ranks.
///
/// Gradients go over the network in buckets, each as soon as backward has filled it.
class DataParallelOptions {
 public:
  /// Sets the size of a bucket. Smaller ones start earlier, larger ones cost less each. Default: 25 MiB.
  /// @param value  about this many bytes, >= 1 (a bucket for each parameter).
  DataParallelOptions& bucket_cap(Bytes value) {
    bucket_cap_ = value;
    return *this;
  }
  Bytes bucket_cap() const { return bucket_cap_; }

  /// Bounds the bucket that is filled first. Default: 1 MiB.
  /// @param value  bytes at most, >= 1.
  DataParallelOptions& first_bucket_cap(Bytes value) {
    first_bucket_cap_ = value;
    return *this;
  }
  Bytes first_bucket_cap() const { return first_bucket_cap_; }

  /// Puts gradients into buckets in the order in which backward made them, after the first step. Default: true.
  ///
  /// - With `false` they stay in the order of `parameters()`, backwards, from the first step on.
  /// - For three or more ranks the order of additions follows from the layout, so a run that is resumed goes on to the
  ///   bit only with `false`.
  /// - Without effect under `find_unused_parameters`, which never rebuilds.
  DataParallelOptions& rebuild_buckets(bool value) {
    rebuild_buckets_ = value;
    return *this;
  }
  bool rebuild_buckets() const { return rebuild_buckets_; }

  /// Gives all ranks the buffers of rank 0 before the first forward of each step. Default: true.
  ///
  /// So BatchNorm's running statistics are those of rank 0's shares; with `false` each rank keeps its own.
  DataParallelOptions& broadcast_buffers(bool value) {
    broadcast_buffers_ = value;
    return *this;
  }
  bool broadcast_buffers() const { return broadcast_buffers_; }

  /// Allows parameters that get no gradient in a step. Default: false, and then such a step is an error at the next
  /// forward.
  ///
  /// A parameter that no rank used keeps its gradient.
  /// Cost: in each step a walk over the graph and a copy of the outputs.
  DataParallelOptions& find_unused_parameters(bool value) {
    find_unused_parameters_ = value;
    return *this;
  }
  bool find_unused_parameters() const { return find_unused_parameters_; }

  /// Promises that every step uses the parameters that the first one uses, in the same way. Default: false.
  ///
  /// The first step then reduces only at its end; later ones know what is unused without a walk.
  DataParallelOptions& static_graph(bool value) {
    static_graph_ = value;
    return *this;
  }
  bool static_graph() const { return static_graph_; }

  /// Makes gradients views of the buckets, so that both need the memory of one. Default: false.
  ///
  /// With `true` reset them by `zero_grad()` of the module: that of LibTorch's optimizers detaches gradients in place,
  /// which views refuse.
  DataParallelOptions& gradient_as_bucket_view(bool value) {
    gradient_as_bucket_view_ = value;
    return *this;
  }
  bool gradient_as_bucket_view() const { return gradient_as_bucket_view_; }

 private:
  Bytes bucket_cap_ = 25_MiB;
  Bytes first_bucket_cap_ = 1_MiB;
  bool rebuild_buckets_ = true;
  bool broadcast_buffers_ = true;
  bool find_unused_parameters_ = false;
  bool static_graph_ = false;
  bool gradient_as_bucket_view_ = false;
};

/// Counts what was sent over the network since construction, on this rank.
struct DataParallelStats {
  int64_t buckets = 0;   ///< all-reduces of gradients, those begun but not ended included
  Bytes bytes = 0;       ///< in them; gradients only
  int64_t rebuilds = 0;  ///< of the layout of buckets
};

namespace detail {

/// Reduces gradients: all of `DataParallel` that does not depend on the type of the module.
class REFRAIN_API GradientReduction {
 public:
  GradientReduction(torch::nn::Module& module, const ProcessGroup& group, const DataParallelOptions& options);
  ~GradientReduction();
  GradientReduction(const GradientReduction&) = delete;
  GradientReduction& operator=(const GradientReduction&) = delete;

  /// Prepares a forward.
  /// @return whether to call `after_forward`.
  [[nodiscard]] bool before_forward();

  /// Prepares the backward of a forward.
  /// @param outputs  what forward returned; some options replace them by copies.
  void after_forward(const std::vector<at::Tensor*>& outputs);

  /// Switches whether gradients are reduced.
  /// @return the old setting.
  bool set_sync(bool on);

  [[nodiscard]] DataParallelStats stats() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace detail

/// While alive, gradients accumulate locally on each rank; no all-reduce. Made by `DataParallel::no_sync`.
class NoSyncGuard {
 public:
  [[nodiscard]] explicit NoSyncGuard(std::shared_ptr<detail::GradientReduction> reduction)
      : reduction_(std::move(reduction)), before_(reduction_->set_sync(false)) {}
  ~NoSyncGuard() { reduction_->set_sync(before_); }
  NoSyncGuard(const NoSyncGuard&) = delete;
  NoSyncGuard& operator=(const NoSyncGuard&) = delete;

 private:
  std::shared_ptr<detail::GradientReduction> reduction_;
  bool before_;
};

/// Trains one model on all ranks of a group: `DataParallel model(net, group); model(x).sum().backward();`.
///
/// - Construction gives every rank the parameters and buffers of rank 0.
/// - Each backward after a forward of this object writes the mean over ranks into `grad()` of every parameter: the
///   gradient of the joined batch if shares are of one size and the loss is a mean.
/// - Buckets go over the network while backward still runs.
/// - Make the optimizer from the module's own parameters, whose names stay as they are.
/// - Regions inside the module, of both recompute modes, and shared weights need nothing: a gradient is reduced once,
///   however often a function runs again.
/// - With gradients disabled a forward is a pass-through and communicates nothing, so that one rank may evaluate alone.
/// @tparam M  class of the module (`torch::nn::LinearImpl`); deduced by the compiler.
/// Threads: one at a time; backward where LibTorch runs it. Ranks make the same calls in the same order.
/// Source: c10d::Reducer of LibTorch does the work: Li et al., "PyTorch Distributed: Experiences on Accelerating Data
/// Parallel Training", VLDB 2020.
template <typename M>
class DataParallel {
 public:
  /// Checks that the models of all ranks agree, and gives them the parameters and buffers of rank 0.
  /// @param module  a module holder, a `std::shared_ptr` to a module, or a module, which must outlive this if nothing
  ///                owns it. Its parameters and buffers stay the same objects from now on.
  /// @throws InvalidArgument   if an option is out of range or no parameter requires a gradient.
  /// @throws DistributedError  on all ranks, if models or options differ: names the first parameter, buffer or option
  ///                           that does, and the ranks.
  template <detail::ModuleLike Module>
  explicit DataParallel(Module&& module, const ProcessGroup& group, const DataParallelOptions& options = {})
      : module_(detail::owned(detail::module_of(module))),
        reduction_(std::make_shared<detail::GradientReduction>(*module_, group, options)) {}

  /// Runs `refrain::call(module, args...)`: its forward, in regions where modules are marked.
  ///
  /// Tensors are found in results as `checkpoint` finds them in arguments.
  /// @return what the module's forward returns.
  /// @throws InvalidArgument   if the last backward gave a parameter no gradient: names it.
  /// @throws DistributedError  from here or from backward, if a rank has exited or timed out.
  template <typename... Args>
  auto forward(Args&&... args) {
    return run([this](auto&&... values) { return call(*module_, std::forward<decltype(values)>(values)...); },
               std::forward<Args>(args)...);
  }
  /// Does the same as `forward`.
  template <typename... Args>
  auto operator()(Args&&... args) {
    return forward(std::forward<Args>(args)...);
  }

  /// Runs as a forward any function that uses the module's parameters, such as one that also computes the loss.
  /// @return what `fn` returns.
  /// @throws  as `forward`.
  template <typename F, typename... Args>
  auto run(F&& fn, Args&&... args) {
    const bool reduces = reduction_->before_forward();
    auto result = detail::call(std::forward<F>(fn), std::forward<Args>(args)...);
    if (reduces) {
      std::vector<at::Tensor*> outputs;
      detail::visit_tensors_in(
          result, detail::Overloaded{[&](at::Tensor& tensor) { outputs.push_back(&tensor); }, [](at::Generator&) {}});
      reduction_->after_forward(outputs);
    }
    return result;
  }

  /// Keeps gradients local while the guard is alive: backwards of forwards in it only add to this rank's gradients.
  ///
  /// The first backward after a forward without it reduces the sum.
  [[nodiscard]] NoSyncGuard no_sync() { return NoSyncGuard(reduction_); }

  M& module() { return *module_; }
  [[nodiscard]] DataParallelStats stats() const { return reduction_->stats(); }

 private:
  std::shared_ptr<M> module_;
  std::shared_ptr<detail::GradientReduction> reduction_;
};

template <typename Module>
DataParallel(Module&&, const ProcessGroup&) -> DataParallel<detail::ModuleType<std::remove_reference_t<Module>>>;
template <typename Module>
DataParallel(Module&&, const ProcessGroup&, const DataParallelOptions&)
    -> DataParallel<detail::ModuleType<std::remove_reference_t<Module>>>;

}  // namespace refrain
