#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "refrain/api.h"
#include "refrain/detail/rerun.h"
#include "refrain/torch_error.h"

namespace refrain {

namespace tape {
class OffloadStore;
}  // namespace tape
class OffloadStore;
class OpContext;
class RegionInputs;
enum class CheckpointPolicy : int;

/// Chooses what to do with the results of one operator; see refrain/selective.h.
/// Threads: called on the thread that runs the region, without any lock; operators it runs are not recorded.
using Policy = std::function<CheckpointPolicy(const OpContext&)>;

/// Selects how backward recomputes what forward did not keep.
enum class RecomputeMode {
  kReplayOperators,  ///< the recorded operators are replayed, below autograd; the function does not
  kRerunFunction,    ///< the function is called again, as torch.utils.checkpoint does
};

/// Selects what `kRerunFunction` compares between the two calls of the function.
enum class DeterminismCheck {
  /// As torch.utils.checkpoint's "default": number, sizes, dtypes and devices of the tensors that autograd saves.
  kDefault,
  /// As `kDefault`, and besides:
  /// - every operator below autograd, with all its arguments and which of them require a gradient;
  /// - what the function read from outside: the same tensor, at the same version, not written by the first call, with
  ///   the same bytes as far as a sample of 64 words shows (host memory, without a `MemoryCap`);
  /// - LibTorch's switches.
  ///
  /// Left out: a backward inside the function.
  kStrict,
  /// Only the number of the tensors that autograd saves.
  kNone,
};

/// Enters a scope; destroying the object that it returns leaves the scope.
using ContextScope = std::function<std::shared_ptr<void>()>;

/// Makes the scopes of one `checkpoint` call, and is called once for each: the first is entered in forward, the second
/// when the function is called again.
using ContextFunction = std::function<std::pair<ContextScope, ContextScope>()>;

/// Configures one `checkpoint` call. Setters chain: `CheckpointOptions().preserve_rng_state(false)`.
class REFRAIN_API CheckpointOptions {
 public:
  /// Selects how backward recomputes. Default: `kReplayOperators`.
  ///
  /// Use `kRerunFunction` for functions that compute through raw pointers where the tape cannot see it, and as a
  /// reference to compare with. Under it:
  /// - Kept until backward: copies of the function, its captures and its arguments. Capture by value, because what a
  ///   reference named may be gone by then.
  /// - Side effects happen twice: BatchNorm statistics move twice. LibTorch's warnings are not repeated; what the
  ///   function itself prints is.
  /// - Detected: an argument, or a tensor that the function read from outside, that was changed in between is an error.
  /// - Nesting: a `checkpoint` called inside without a policy is rerun too.
  ///
  /// Threads: functions are called again on several threads at once, those of one `checkpoint` call one after another.
  CheckpointOptions& recompute_mode(RecomputeMode value) {
    recompute_mode_ = value;
    return *this;
  }
  RecomputeMode recompute_mode() const { return recompute_mode_; }

  /// Selects whether a replayed random operator draws the numbers that it drew in forward. Default: true.
  ///
  /// Use `false` for code known to be free of random operators. Then:
  /// - No generator state is read in forward, which saves about 1 us and 5 KB per random operator on CPU.
  /// - Backward throws `CheckpointError` if it needs a replayed random operator: a fresh draw would be a silently wrong
  ///   gradient.
  /// - A rerun draws fresh numbers, except from generators among its arguments.
  CheckpointOptions& preserve_rng_state(bool value) {
    preserve_rng_state_ = value;
    return *this;
  }
  bool preserve_rng_state() const { return preserve_rng_state_; }

  /// Sets which operators' results to keep rather than recompute; see refrain/selective.h. Default: none is kept.
  /// Holds for this region, not for regions opened inside it.
  CheckpointOptions& policy(Policy value) {
    policy_ = value ? std::make_shared<const Policy>(std::move(value)) : nullptr;
    return *this;
  }
  const std::shared_ptr<const Policy>& policy() const { return policy_; }

  /// Sets where `CheckpointPolicy::kOffload` stores bytes; see refrain/offload.h. Default: the store of
  /// `set_offload_store`. Holds for this region, not for regions opened inside it.
  CheckpointOptions& offload(const OffloadStore& store);
  /// For the library itself.
  const std::shared_ptr<tape::OffloadStore>& offload() const { return offload_; }

  /// Sets where the tensors among the arguments are kept until backward. `ActivationCheckpointing::options` sets it;
  /// see refrain/activation_checkpointing.h. Default: null, which keeps them in memory. Holds for this region, not for
  /// regions opened inside it.
  CheckpointOptions& input_storage(std::shared_ptr<RegionInputs> value) {
    input_storage_ = std::move(value);
    return *this;
  }
  /// For the library itself.
  const std::shared_ptr<RegionInputs>& input_storage() const { return input_storage_; }

  /// Keeps the tensors among the arguments in the `offload` store until backward: an `input_storage` with
  /// `cpu_checkpointing`, which replaces the one that was set. Default: false.
  CheckpointOptions& offload_to_cpu(bool value);

  /// Selects how the two calls of the function are compared; for `kRerunFunction` only. Default: `kStrict`.
  ///
  /// Use `kDefault` if the calls differ on purpose (by `is_recomputing`, or because the first one fills a cache) and
  /// the gradients are right all the same.
  /// Cost: for `kStrict`, about 0.5 us per operator and call, and 0.1 KB per operator until backward.
  CheckpointOptions& determinism_check(DeterminismCheck value) {
    determinism_check_ = value;
    return *this;
  }
  DeterminismCheck determinism_check() const { return determinism_check_; }

  /// Ends the second call of the function at the first operator after the last one that backward needs; for
  /// `kRerunFunction` only. Default: true.
  ///
  /// - It is ended by an exception that is no `std::exception` and passes through the function.
  /// - Set `false` if the function has side effects at its end that must happen again.
  /// - Where the exception would not get through (a `noexcept` function or destructor in between, a function that
  ///   catches everything, code without unwind tables), the function runs on to the next place where it does, or to its
  ///   end.
  /// - Not detected: a `noexcept` function that the compiler has inlined into one that is not. There the process ends,
  ///   so set `false`.
  CheckpointOptions& early_stop(bool value) {
    early_stop_ = value;
    return *this;
  }
  bool early_stop() const { return early_stop_; }

  /// Notes every operator of both calls of the function, and shows both lists where they differ; for `kRerunFunction`
  /// only. Default: false.
  CheckpointOptions& debug(bool value) {
    debug_ = value;
    return *this;
  }
  bool debug() const { return debug_; }

  /// Sets scopes of your own around the function, one for forward and one for the second call; for `kRerunFunction`
  /// only. Default: none.
  CheckpointOptions& context_fn(ContextFunction value) {
    context_fn_ = std::move(value);
    return *this;
  }
  const ContextFunction& context_fn() const { return context_fn_; }

 private:
  std::shared_ptr<const Policy> policy_;
  std::shared_ptr<tape::OffloadStore> offload_;
  std::shared_ptr<RegionInputs> input_storage_;
  ContextFunction context_fn_;
  RecomputeMode recompute_mode_ = RecomputeMode::kReplayOperators;
  DeterminismCheck determinism_check_ = DeterminismCheck::kStrict;
  bool preserve_rng_state_ = true;
  bool early_stop_ = true;
  bool debug_ = false;
};

/// Returns whether this thread is inside the forward of a `checkpoint` region.
/// Cost: a few ns.
[[nodiscard]] REFRAIN_API bool is_checkpointing() noexcept;

/// Returns whether this thread is recomputing what a region did not keep.
///
/// - With `kRerunFunction` the function sees `true` in its second call.
/// - With `kReplayOperators` only operators run then, none of your functions, so only custom operators, kernels and
///   allocators can see `true`.
///
/// Cost: a few ns.
[[nodiscard]] REFRAIN_API bool is_recomputing() noexcept;

/// Overrides `CheckpointOptions::early_stop` in the whole process, for regions opened from now on.
/// @param value  nullopt: no override, the options decide.
/// @return  the old override.
/// Threads: any.
REFRAIN_API std::optional<bool> set_early_stop(std::optional<bool> value);

/// Overrides `CheckpointOptions::debug` in the whole process, for regions opened from now on.
/// @param value  nullopt: no override, the options decide.
/// @return  the old override.
/// Threads: any.
REFRAIN_API std::optional<bool> set_debug(std::optional<bool> value);

/// Enables or disables checkpointing in the whole process. Default: true.
/// @param value  `false`: `checkpoint` is a pass-through on every thread.
/// @return  the old setting.
/// Threads: any.
REFRAIN_API bool set_checkpointing_enabled(bool value);

/// Overrides `early_stop` of regions opened on this thread while it lives, whatever options and process say. Nests.
class REFRAIN_API EarlyStopGuard {
 public:
  explicit EarlyStopGuard(bool value);
  ~EarlyStopGuard();
  EarlyStopGuard(const EarlyStopGuard&) = delete;
  EarlyStopGuard& operator=(const EarlyStopGuard&) = delete;
};

/// Overrides `debug` of regions opened on this thread while it lives, whatever options and process say. Nests.
class REFRAIN_API DebugGuard {
 public:
  explicit DebugGuard(bool value);
  ~DebugGuard();
  DebugGuard(const DebugGuard&) = delete;
  DebugGuard& operator=(const DebugGuard&) = delete;
};

/// Makes `checkpoint` a pass-through on this thread while it lives: nothing is recorded or recomputed, everything is
/// kept. Use it to compare, to debug, or for an evaluation that needs gradients of little. Regions that are open
/// already continue. Nests.
class REFRAIN_API NoCheckpointGuard {
 public:
  NoCheckpointGuard();
  ~NoCheckpointGuard();
  NoCheckpointGuard(const NoCheckpointGuard&) = delete;
  NoCheckpointGuard& operator=(const NoCheckpointGuard&) = delete;
};

namespace detail {

/// Records every operator that runs on this thread while it lives. Not movable: it lives on the stack of `checkpoint`.
class REFRAIN_API RegionScope {
 public:
  explicit RegionScope(const CheckpointOptions& options);
  ~RegionScope();
  RegionScope(const RegionScope&) = delete;
  RegionScope& operator=(const RegionScope&) = delete;

  /// Gives the tensors in an argument to `CheckpointOptions::input_storage`, before the function is called.
  template <typename T>
  void add_inputs(const T& argument) {
    // `visit_tensors_in` wants to be able to change what it visits; this does not
    visit_tensors_in(const_cast<T&>(argument),
                     Overloaded{[&](at::Tensor& tensor) { add_input(tensor); }, [](at::Generator&) {}});
  }

 private:
  void add_input(const at::Tensor& tensor);
  void* region_ = nullptr;   ///< null with gradients disabled, under a `NoCheckpointGuard`, or if a plan chooses
  bool is_planned_ = false;  ///< a step that is traced or planned chooses what of the region to recompute
};

/// Returns whether a `checkpoint` call on this thread now would call its function again in backward.
[[nodiscard]] REFRAIN_API bool reruns(const CheckpointOptions& options);

/// Calls `fn(args...)`; `fn` may also be a member pointer for an object, pointer or module holder, or a
/// `std::shared_ptr` to something callable or with a `forward`.
template <typename F, typename... Args>
decltype(auto) call(F&& fn, Args&&... args) {
  // `forward` first: the call operator of some LibTorch module holders (Sequential) deduces to void.
  if constexpr (requires { fn->forward(std::forward<Args>(args)...); }) {
    return fn->forward(std::forward<Args>(args)...);
  } else if constexpr (std::is_invocable_v<F, Args...>) {
    return std::invoke(std::forward<F>(fn), std::forward<Args>(args)...);
  } else if constexpr (requires { (*fn)(std::forward<Args>(args)...); }) {
    return (*fn)(std::forward<Args>(args)...);
  } else {
    static_assert(
        requires { fn.forward(std::forward<Args>(args)...); },
        "refrain::checkpoint: the first argument cannot be called with these arguments. "
        "Pass a callable, a module, a module holder, a shared_ptr to a module, or &Class::method followed by the "
        "object.");
    return fn.forward(std::forward<Args>(args)...);
  }
}

/// Calls `fn(args...)` in a region whose function is called again in backward.
template <typename F, typename... Args>
decltype(auto) checkpoint_rerun(const CheckpointOptions& options, F&& fn, Args&&... args) {
  RerunScope scope(options);
  if constexpr (std::is_nothrow_invocable_v<F, Args...>) scope.run_whole();
  if constexpr (kCanKeep<F> && (kCanKeep<Args> && ...)) {
    auto kept = std::make_shared<std::tuple<Kept<Args>...>>(Kept<Args>(Keep(), args)...);
    visit_tensors_in(*kept,
                     Overloaded{[&](at::Tensor& tensor) { scope.save_input(std::exchange(tensor, at::Tensor())); },
                                [&](at::Generator& generator) { scope.save_generator(generator); }});
    scope.enter([kept_fn = Kept<F>(Keep(), fn), kept](const NextInput& next_input) {
      auto again_fn = kept_fn;
      auto again = *kept;
      visit_tensors_in(again, Overloaded{[&](at::Tensor& tensor) { tensor = next_input(); }, [](at::Generator&) {}});
      std::apply([&](auto&... arg) { (void)call(again_fn.template as<F>(), arg.template as<Args>()...); }, again);
    });
  } else {
    scope.refuse_uncopyable();
  }
  return call(std::forward<F>(fn), std::forward<Args>(args)...);
}

}  // namespace detail

/// Runs `fn(args...)` once and keeps for backward only what `fn` read from outside; backward replays the rest.
///
/// Gradients, random numbers, buffers and side effects are those of the baseline, to the bit: backward replays recorded
/// operators below autograd, each at most once per pass, and never calls `fn` again. So BatchNorm statistics move once,
/// prints print once, and `args` may be anything at all. Exceptions of `fn` pass through.
///
/// @param fn    a callable, a module, a module holder, a `std::shared_ptr` to one, or `&Class::method` with the object
///              as first argument.
/// @param args  forwarded to `fn` untouched.
/// @return  exactly what `fn` returns, of any type.
/// @throws InvalidArgument  for a null `fn` (or object of a member pointer), under forward-mode AD, vmap, or inference
///                          mode with gradients switched on.
/// @throws CheckpointError  in backward, if a tensor that `fn` read from outside was changed since, so that replay
///                          would be wrong.
/// Cost: about 0.4 us per operator in forward, plus the replayed operators in backward. With gradients disabled
/// (inference mode too): a pass-through.
/// Threads: may be called from several threads at once; backward may run on any thread.
/// Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016; here on operators, not functions.
template <typename F, typename... Args>
requires(!std::is_same_v<std::remove_cvref_t<F>, CheckpointOptions>) decltype(auto) checkpoint(F&& fn, Args&&... args) {
  return checkpoint(CheckpointOptions{}, std::forward<F>(fn), std::forward<Args>(args)...);
}

/// Runs `fn(args...)` as `checkpoint(fn, args...)` does, with options.
///
/// @param options  how this call behaves.
/// @param fn       as above.
/// @param args     as above.
/// @return  exactly what `fn` returns, of any type.
/// @throws InvalidArgument  as above; also for `kRerunFunction` with a policy, for a `context_fn` without
///                          `kRerunFunction`, and for something to keep for the second call that cannot be copied.
/// @throws CheckpointError  as above; also, in backward, if the second call did something else.
template <typename F, typename... Args>
decltype(auto) checkpoint(const CheckpointOptions& options, F&& fn, Args&&... args) {
  detail::refuse_null(fn, args...);
  if (detail::reruns(options))
    return detail::checkpoint_rerun(options, std::forward<F>(fn), std::forward<Args>(args)...);
  detail::RegionScope region{options};
  if (options.input_storage()) (region.add_inputs(args), ...);
  return detail::call(std::forward<F>(fn), std::forward<Args>(args)...);
}

}  // namespace refrain
