#pragma once

#include <torch/nn/module.h>

#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "refrain/bytes.h"
#include "refrain/distributed.h"
#include "refrain/nn.h"

/// One copy of a model on each rank, each with its share of the batch; gradients are averaged during backward.
namespace refrain {

/// How gradients are averaged. Setters chain. The same on all ranks.
class DataParallelOptions {
 public:
  /// Gradients go over the network in buckets of about this many bytes, each as soon as backward has filled it; the
  /// first to be filled is of at most `first_bucket_cap`. Smaller ones start earlier, larger ones cost less each.
  /// Default: 25 MiB, and 1 MiB. Range: 1 byte (a bucket for each parameter) up.
  DataParallelOptions& bucket_cap(Bytes value) {
    bucket_cap_ = value;
    return *this;
  }
  Bytes bucket_cap() const { return bucket_cap_; }
  DataParallelOptions& first_bucket_cap(Bytes value) {
    first_bucket_cap_ = value;
    return *this;
  }
  Bytes first_bucket_cap() const { return first_bucket_cap_; }

  /// After the first step, put gradients into buckets in the order in which backward made them. Default: true. With
  /// `false` they stay in the order of `parameters()`, backwards, from the first step on: for three or more ranks the
  /// order of additions follows from the layout, so a run that is resumed goes on to the bit only with `false`. Without
  /// effect under `find_unused_parameters`, which never rebuilds.
  DataParallelOptions& rebuild_buckets(bool value) {
    rebuild_buckets_ = value;
    return *this;
  }
  bool rebuild_buckets() const { return rebuild_buckets_; }

  /// Give all ranks the buffers of rank 0 before the first forward of each step. Default: true. So BatchNorm's running
  /// statistics are those of rank 0's shares; with `false` each rank keeps its own.
  DataParallelOptions& broadcast_buffers(bool value) {
    broadcast_buffers_ = value;
    return *this;
  }
  bool broadcast_buffers() const { return broadcast_buffers_; }

  /// Some parameters may get no gradient in a step. Default: false, and then such a step is an error at the next
  /// forward. Costs a walk over the graph and a copy of the outputs in each step. A parameter that no rank used keeps
  /// its gradient.
  DataParallelOptions& find_unused_parameters(bool value) {
    find_unused_parameters_ = value;
    return *this;
  }
  bool find_unused_parameters() const { return find_unused_parameters_; }

  /// Every step uses the parameters that the first one uses, in the same way. Default: false. The first step then
  /// reduces only at its end; later ones know what is unused without a walk.
  DataParallelOptions& static_graph(bool value) {
    static_graph_ = value;
    return *this;
  }
  bool static_graph() const { return static_graph_; }

  /// Gradients are views of the buckets, so that both need the memory of one. Default: false. With `true` reset them by
  /// `zero_grad()` of the module: that of LibTorch's optimizers detaches gradients in place, which views refuse.
  DataParallelOptions& gradient_as_bucket_view(bool value) {
    gradient_as_bucket_view_ = value;
    return *this;
  }
  bool gradient_as_bucket_view() const { return gradient_as_bucket_view_; }

 private:
  Bytes bucket_cap_ = Bytes{25} << 20, first_bucket_cap_ = Bytes{1} << 20;
  bool rebuild_buckets_ = true, broadcast_buffers_ = true, find_unused_parameters_ = false, static_graph_ = false,
       gradient_as_bucket_view_ = false;
};

/// What has gone over the network since construction, on this rank.
struct DataParallelStats {
  int64_t buckets = 0;   ///< all-reduces of gradients, those begun but not ended included
  Bytes bytes = 0;       ///< in them; gradients only
  int64_t rebuilds = 0;  ///< of the layout of buckets
};

namespace detail {

/// All of `DataParallel` that does not depend on the type of the module.
class GradientReduction {
 public:
  GradientReduction(torch::nn::Module& module, const ProcessGroup& group, const DataParallelOptions& options);
  ~GradientReduction();
  GradientReduction(const GradientReduction&) = delete;
  GradientReduction& operator=(const GradientReduction&) = delete;

  /// Before forward. @return whether to call `after_forward`.
  bool before_forward();
  /// @param outputs  what forward returned; some options replace them by copies.
  void after_forward(const std::vector<at::Tensor*>& outputs);
  /// @return what it was.
  bool set_sync(bool on);
  DataParallelStats stats() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace detail

/// While it lives, forwards leave gradients to add up on each rank.
class NoSyncGuard {
 public:
  explicit NoSyncGuard(std::shared_ptr<detail::GradientReduction> reduction)
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
/// Construction gives every rank the parameters and buffers of rank 0. Each backward after a forward of this object
/// leaves in `grad()` of every parameter the mean over ranks: the gradient of the joined batch if shares are of one
/// size and the loss is a mean. Buckets go over the network while backward still runs. Make the optimizer from the
/// module's own parameters, whose names stay as they are. Regions inside the module, of both sources, and shared
/// weights need nothing: a gradient is reduced once, however often a function runs again.
///
/// With gradients disabled a forward is a plain call and communicates nothing, so that one rank may evaluate alone.
/// @tparam M  class of the module (`torch::nn::LinearImpl`); left to the compiler.
/// Threads: one at a time; backward where LibTorch runs it. Ranks make the same calls in the same order.
/// Source: c10d::Reducer of LibTorch does the work: Li et al., "PyTorch Distributed: Experiences on Accelerating Data
/// Parallel Training", VLDB 2020.
template <typename M>
class DataParallel {
 public:
  /// @param module  a module holder, a `std::shared_ptr` to a module, or a module, which must outlive this if nothing
  ///                owns it. Its parameters and buffers stay the same objects from now on.
  /// @throws InvalidArgument   if an option is out of range or no parameter requires a gradient.
  /// @throws DistributedError  on all ranks, if models or options differ: names the first parameter, buffer or option
  ///                           that does, and the ranks.
  template <detail::ModuleLike Module>
  explicit DataParallel(Module&& module, const ProcessGroup& group, const DataParallelOptions& options = {})
      : module_(detail::owned(detail::module_of(module))),
        reduction_(std::make_shared<detail::GradientReduction>(*module_, group, options)) {}

  /// `refrain::call(module, args...)`: its forward, in regions where modules are marked. Tensors are found in results
  /// as `checkpoint` finds them in arguments.
  /// @throws InvalidArgument  if the last backward left a parameter without a gradient: names it.
  /// @throws DistributedError  from here or from backward, if a rank has ended or is late.
  template <typename... Args>
  auto forward(Args&&... args) {
    return run([this](auto&&... values) { return call(*module_, std::forward<decltype(values)>(values)...); },
               std::forward<Args>(args)...);
  }
  template <typename... Args>
  auto operator()(Args&&... args) {
    return forward(std::forward<Args>(args)...);
  }

  /// The same for any function that uses the module's parameters, such as one that also computes the loss.
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

  /// Until the guard goes: forwards whose backward only adds to this rank's gradients. The first backward after a
  /// forward without it reduces the sum.
  [[nodiscard]] NoSyncGuard no_sync() { return NoSyncGuard(reduction_); }

  M& module() { return *module_; }
  DataParallelStats stats() const { return reduction_->stats(); }

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
