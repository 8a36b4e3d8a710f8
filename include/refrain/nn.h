#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/modules/container/named_any.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/pimpl.h>

#include <concepts>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <typeinfo>
#include <utility>

#include "refrain/api.h"
#include "refrain/checkpoint.h"
#include "refrain/detail/trace_scope.h"

/// Checkpoints modules, in two ways:
/// - `nn::Checkpoint<M>` *is* an M whose forward is a region.
/// - `apply_checkpointing` marks modules of a finished model, and `call` runs a marked module as a region.
///
/// Neither puts a module between others: names of modules, parameters and buffers, and archives, are those of the
/// baseline's model.
namespace refrain {

namespace nn {

/// Holds what a `Checkpoint` has besides the members of its module.
/// Threads: as `Module::train`, not while another thread runs the module's forward.
class REFRAIN_API CheckpointSettings {
 public:
  /// Sets the options for calls of forward from now on. Default: `CheckpointOptions()`.
  void checkpoint_options(CheckpointOptions options) { options_ = std::move(options); }
  const CheckpointOptions& checkpoint_options() const { return options_; }
  /// Sets `CheckpointOptions::offload_to_cpu` of these options: what forward is given goes to host memory until
  /// backward.
  void offload_to_cpu(bool value) { options_.offload_to_cpu(value); }

  /// Makes forward a region. The default.
  void enable() { enabled_ = true; }
  /// Makes forward a pass-through: that of M.
  void disable() { enabled_ = false; }
  bool enabled() const { return enabled_; }

 private:
  CheckpointOptions options_;
  bool enabled_ = true;
};

}  // namespace nn

namespace detail {

/// Finds the module class behind a module holder; a module class stays as it is.
template <typename M>
struct ImplOf {
  using Type = M;
};
template <typename M>
requires requires { typename M::ContainedType; }
struct ImplOf<M> {
  using Type = typename M::ContainedType;
};

/// A class with a forward that is neither overloaded nor a template.
template <typename M>
concept HasOneForward = requires {
  typename std::void_t<decltype(&M::forward)>;
};
/// A `Sequential` without a forward of its own.
template <typename M>
concept RunsLayers = std::derived_from<M, torch::nn::SequentialImpl> && !HasOneForward<M>;

/// Finds the type of `&M::forward`; void where forward is overloaded or a template.
template <typename M>
struct ForwardOf {
  using Type = void;
};
template <HasOneForward M>
struct ForwardOf<M> {
  using Type = decltype(&M::forward);
};
template <RunsLayers M>
struct ForwardOf<M> {
  using Type = torch::Tensor (M::*)(torch::Tensor);
};

/// Returns the module that a module, pointer, holder or `AnyModule` stands for.
/// @throws InvalidArgument  for a null pointer or an empty holder.
template <std::derived_from<torch::nn::Module> M>
M& module_of(M& module) {
  return module;
}
template <std::derived_from<torch::nn::Module> M>
M& module_of(const std::shared_ptr<M>& module) {
  if (!module) throw_null_module();
  return *module;
}
template <typename M>
M& module_of(const torch::nn::ModuleHolder<M>& holder) {
  if (holder.is_empty()) throw_null_module();
  return *holder.ptr();
}
inline torch::nn::Module& module_of(const torch::nn::AnyModule& module) {
  if (module.is_empty()) throw_null_module();
  return *module.ptr();
}

/// A module, a `std::shared_ptr` to one, a module holder or an `AnyModule`.
template <typename M>
concept ModuleLike = requires(M& module) {
  detail::module_of(module);
};
/// The class of what `module_of` returns.
template <typename M>
using ModuleType = std::remove_cvref_t<decltype(detail::module_of(std::declval<M&>()))>;
/// A module whose layers are known at run time, so that its result type has to be asked for.
template <typename M>
concept DynamicModule = ModuleLike<M> &&
    (std::same_as<std::remove_cvref_t<M>, torch::nn::AnyModule> || RunsLayers<ModuleType<M>>);

/// Keeps `module` alive if a `std::shared_ptr` owns it: a region may run again when its caller has released it.
template <typename M>
std::shared_ptr<M> owned(M& module) {
  return {module.weak_from_this().lock(), &module};
}

/// Returns the options of the mark on `module`; null if there is none or it is disabled.
[[nodiscard]] REFRAIN_API std::shared_ptr<const CheckpointOptions> mark_of(const torch::nn::Module& module);

/// Refuses to clone a `Checkpoint` of a class that cannot be copied.
/// @param name  of the module.
/// @throws InvalidArgument  always.
[[noreturn]] REFRAIN_API void throw_uncopyable_module(const std::string& name);

/// Runs `layer`, in a region of its own if it is marked.
template <typename... Args>
torch::nn::AnyValue call_any(torch::nn::AnyModule& layer, Args&&... args) {
  const TraceScope scope(module_of(layer));
  if (const auto options = mark_of(module_of(layer))) {
    const auto forward = [layer](auto&&... values) {
      return torch::nn::AnyModule(layer).any_forward(std::forward<decltype(values)>(values)...);
    };
    return checkpoint(*options, forward, std::forward<Args>(args)...);
  }
  return layer.any_forward(std::forward<Args>(args)...);
}

}  // namespace detail

/// Runs the forward of `module`, in a region of its own if `apply_checkpointing` marked it.
///
/// Use it for modules that your own forward runs: `x = refrain::call(block1, x)`. What forward and `checkpoint` throw
/// passes through.
///
/// @param module  a module with a forward, a `std::shared_ptr` to one, or a module holder. An element of a `ModuleList`
///                needs its type: `refrain::call(list->ptr<BlockImpl>(i), x)`.
/// @param args    as for its forward, default arguments included.
/// @return  what forward returns.
/// @throws InvalidArgument  for a null pointer or an empty holder.
/// Cost: while the process has no mark, a few ns; else a lock and a look-up.
/// Threads: any.
template <typename M, typename... Args>
requires(detail::ModuleLike<M> && !detail::DynamicModule<M>) decltype(auto) call(M&& module, Args&&... args) {
  static_assert(!std::is_same_v<detail::ModuleType<M>, torch::nn::Module>,
                "refrain::call: torch::nn::Module has no forward. Give the module's type: list->ptr<BlockImpl>(i).");
  auto& impl = detail::module_of(module);
  const detail::TraceScope scope(impl);
  if (const auto options = detail::mark_of(impl))
    return checkpoint(*options, detail::owned(impl), std::forward<Args>(args)...);
  return detail::call(&impl, std::forward<Args>(args)...);
}

/// Runs the layers of `sequential` one after another, each as by `call`; the mark of `sequential` itself has no effect.
/// For the forward of a class derived from `SequentialImpl`, which LibTorch requires for a `Sequential` in a
/// `Sequential`.
/// @tparam R  type of the last layer's result.
/// @param sequential  layers to run.
/// @param args        of the first layer.
/// @return  the result of the last layer.
template <typename R = torch::Tensor, typename... Args>
R call_layers(torch::nn::SequentialImpl& sequential, Args&&... args) {
  if (sequential.is_empty()) return sequential.forward<R>(std::forward<Args>(args)...);  // LibTorch's error
  auto layer = sequential.begin();
  auto value = detail::call_any(*layer, std::forward<Args>(args)...);
  while (++layer != sequential.end()) {
    auto* const tensor = value.template try_get<torch::Tensor>();
    value = tensor ? detail::call_any(*layer, std::move(*tensor)) : detail::call_any(*layer, std::move(value));
  }
  return value.template get<R>();
}

/// Runs the forward of an `AnyModule`, or of a `Sequential` whose layers may be marked as well as itself, like `call`
/// above.
/// @tparam R  type of the result. As with their own forward, one other than a tensor has to be asked for:
///            `refrain::call<std::tuple<Tensor, Tensor>>(seq, x)`.
/// @param module  an `AnyModule`, or a `Sequential` or its implementation.
/// @param args    as for its forward.
/// @return  what forward returns.
/// @throws InvalidArgument  for a null pointer or an empty holder.
template <typename R = torch::Tensor, typename M, typename... Args>
requires detail::DynamicModule<M> R call(M&& module, Args&&... args) {
  if constexpr (std::is_same_v<std::remove_cvref_t<M>, torch::nn::AnyModule>) {
    return detail::call_any(module, std::forward<Args>(args)...).template get<R>();
  } else {
    auto& sequential = detail::module_of(module);
    const detail::TraceScope scope(sequential);
    if (const auto options = detail::mark_of(sequential)) {
      const auto forward = [owner = detail::owned(sequential)](auto&&... values) {
        return call_layers<R>(*owner, std::forward<decltype(values)>(values)...);
      };
      return checkpoint(*options, forward, std::forward<Args>(args)...);
    }
    return call_layers<R>(sequential, std::forward<Args>(args)...);
  }
}

namespace detail {

/// Implements what all forms of `CheckpointImpl` have.
/// @tparam Self  the class that derives from it.
/// @tparam M     the module class.
template <typename Self, typename M>
class CheckpointBase : public M, public nn::CheckpointSettings {
 public:
  using M::M;

  /// Runs M's forward in a region.
  /// @param args  as for a direct call, default arguments included.
  template <typename... Args>
  decltype(auto) operator()(Args&&... args) {
    return run(*this, std::forward<Args>(args)...);
  }

  /// Makes a checkpointed clone with the same settings. What M's clone throws passes through.
  /// @param device  of the clone's parameters and buffers; nullopt: as here.
  /// @throws InvalidArgument  if M cannot be copied.
  std::shared_ptr<torch::nn::Module> clone(const std::optional<torch::Device>& device = std::nullopt) const override {
    const auto plain = M::clone(device);
    if constexpr (std::is_copy_constructible_v<M> && std::is_copy_assignable_v<M>) {
      auto copy = std::make_shared<Self>(static_cast<const Self&>(*this));
      static_cast<M&>(*copy) = dynamic_cast<const M&>(*plain);
      return copy;
    } else {
      throw_uncopyable_module(this->name());
    }
  }

 protected:
  template <typename This, typename... Args>
  static decltype(auto) run(This& self, Args&&... args) {
    const auto forward = [owner = owned(self)](auto&&... values) -> decltype(auto) {
      if constexpr (RunsLayers<M>)
        return call_layers(*owner, std::forward<decltype(values)>(values)...);
      else
        return owner->M::forward(std::forward<decltype(values)>(values)...);
    };
    const TraceScope scope(self, typeid(M));
    if (!self.enabled()) return forward(std::forward<Args>(args)...);
    return checkpoint(self.checkpoint_options(), forward, std::forward<Args>(args)...);
  }
};

}  // namespace detail

namespace nn {

/// Derives from M and makes its forward a checkpoint region. The general case: M's forward is overloaded or a template.
/// @tparam M        the module class.
/// @tparam Forward  the type of `&M::forward`, or void.
template <typename M, typename Forward = typename detail::ForwardOf<M>::Type>
class CheckpointImpl : public detail::CheckpointBase<CheckpointImpl<M, Forward>, M> {
 public:
  using detail::CheckpointBase<CheckpointImpl, M>::CheckpointBase;
  /// Runs M's forward in a region.
  template <typename... Args>
  decltype(auto) forward(Args&&... args) {
    return this->run(*this, std::forward<Args>(args)...);
  }
};

/// Has a forward with exactly M's signature, which `AnyModule` and so `Sequential` look for.
template <typename M, typename R, typename C, typename... Args>
class CheckpointImpl<M, R (C::*)(Args...)> : public detail::CheckpointBase<CheckpointImpl<M, R (C::*)(Args...)>, M> {
 public:
  using detail::CheckpointBase<CheckpointImpl, M>::CheckpointBase;
  R forward(Args... args) { return this->run(*this, std::forward<Args>(args)...); }
};

/// Likewise, for a const forward.
template <typename M, typename R, typename C, typename... Args>
class CheckpointImpl<M, R (C::*)(Args...) const>
    : public detail::CheckpointBase<CheckpointImpl<M, R (C::*)(Args...) const>, M> {
 public:
  using detail::CheckpointBase<CheckpointImpl, M>::CheckpointBase;
  R forward(Args... args) const { return this->run(*this, std::forward<Args>(args)...); }
};

/// Holds a checkpointed M: `refrain::nn::Checkpoint<torch::nn::Linear> layer(64, 64)` takes what `Linear` takes and
/// goes where it goes.
///
/// - Wrap blocks rather than single layers: a region keeps what it reads.
/// - `layer(x)` takes M's default arguments; `layer->forward(x)` requires all of them, as `AnyModule` does without
///   `FORWARD_HAS_DEFAULT_ARGS`.
/// - A `Checkpoint<Sequential>` runs tensor to tensor in `->forward` and containers, with any arguments in
///   `layer(...)`. Unlike a `Sequential` it may stand in a `Sequential`, and marks of its layers hold.
/// - Its type is not M: `seq->at<Checkpoint<Linear>::Impl>(0)`; `module->as<Linear>()` finds it.
/// - A clone has the settings of the original, except as a registered child of a cloned module of yours: LibTorch lets
///   the parent's `reset()` make it, and so its settings.
/// - Errors, cost and threads of a call: as `checkpoint`.
///
/// @tparam M  a module holder (`torch::nn::Linear`, yours by `TORCH_MODULE`) or the module class itself. It is derived
///            from, so not `final`.
template <typename M>
class Checkpoint : public torch::nn::ModuleHolder<CheckpointImpl<typename detail::ImplOf<M>::Type>> {
 public:
  using Impl = CheckpointImpl<typename detail::ImplOf<M>::Type>;
  using torch::nn::ModuleHolder<Impl>::ModuleHolder;
  Checkpoint() = default;
  /// Makes a `Checkpoint<Sequential>` of named layers.
  Checkpoint(std::initializer_list<torch::nn::NamedAnyModule> layers) requires
      std::is_base_of_v<torch::nn::SequentialImpl, Impl>
      : torch::nn::ModuleHolder<Impl>(std::make_shared<Impl>(layers)) {}

  /// Runs M's forward in a region.
  /// @param args  as for M's forward, default arguments included.
  /// @throws InvalidArgument  if this holder is empty.
  template <typename... Args>
  decltype(auto) operator()(Args&&... args) {
    detail::refuse_null(*this);
    return (**this)(std::forward<Args>(args)...);
  }
};

}  // namespace nn

/// Chooses whether to mark a module. `name` is that of `named_modules()`; the model itself is "".
using ModulePredicate = std::function<bool(const std::string& name, const torch::nn::Module& module)>;

/// Makes a predicate that is true for modules of these classes or derived ones:
/// `is_module<torch::nn::TransformerEncoderLayer, Block>()`.
/// @tparam Modules  module classes or module holders.
template <typename... Modules>
[[nodiscard]] ModulePredicate is_module() {
  return [](const std::string&, const torch::nn::Module& module) {
    return (... || (dynamic_cast<const typename detail::ImplOf<Modules>::Type*>(&module) != nullptr));
  };
}

namespace detail {

/// Implements `apply_checkpointing`.
REFRAIN_API int64_t mark(torch::nn::Module& model, const ModulePredicate& predicate, const CheckpointOptions& options);
/// Implements `remove_checkpointing`.
REFRAIN_API int64_t unmark(torch::nn::Module& model);
/// Implements `enable_checkpointing` and `disable_checkpointing`.
REFRAIN_API int64_t set_enabled(torch::nn::Module& model, bool enabled);

}  // namespace detail

/// Marks every module of `model` for which `predicate` is true, so that `refrain::call` runs it as a region with
/// `options`. An earlier mark is replaced and enabled.
///
/// - A mark takes effect where a module is run by `call`: layers of a `Sequential` by calling that, others where a
///   forward says `call`.
/// - A mark belongs to the object, not to its tensors: `to`, `train` and `load` keep it, a clone has none.
/// - Marks hold the module weakly. Stale marks are purged by the process's next `apply_checkpointing` or
///   `remove_checkpointing`.
///
/// @param model      a module, a `std::shared_ptr` to one, a module holder or an `AnyModule`.
/// @param predicate  true for each module to mark.
/// @param options    of the regions.
/// @return  the number of modules marked; one of two names counts once.
/// @throws InvalidArgument  if `predicate` is empty or true for no module; if it is true for `model` itself and no
///                          `std::shared_ptr` owns that (as in its constructor). Then nothing is marked.
/// Threads: any, also while others run the model; regions that are open continue.
template <detail::ModuleLike M>
int64_t apply_checkpointing(M&& model, const ModulePredicate& predicate, const CheckpointOptions& options = {}) {
  return detail::mark(detail::module_of(model), predicate, options);
}

/// Removes the marks from `model` and all modules below.
/// @param model  as for `apply_checkpointing`.
/// @return  the number of marks removed.
/// Threads: any.
template <detail::ModuleLike M>
int64_t remove_checkpointing(M&& model) {
  return detail::unmark(detail::module_of(model));
}

/// Makes marked modules and `nn::Checkpoint`s in `model`, itself included, a pass-through until they are enabled again.
/// @param model  as for `apply_checkpointing`.
/// @return  the number of these modules.
/// Threads: any for marks; for `nn::Checkpoint` see `nn::CheckpointSettings`.
template <detail::ModuleLike M>
int64_t disable_checkpointing(M&& model) {
  return detail::set_enabled(detail::module_of(model), false);
}

/// Enables marked modules and `nn::Checkpoint`s in `model`, itself included, after `disable_checkpointing`.
/// @param model  as for `apply_checkpointing`.
/// @return  the number of these modules.
/// Threads: any for marks; for `nn::Checkpoint` see `nn::CheckpointSettings`.
template <detail::ModuleLike M>
int64_t enable_checkpointing(M&& model) {
  return detail::set_enabled(detail::module_of(model), true);
}

}  // namespace refrain
