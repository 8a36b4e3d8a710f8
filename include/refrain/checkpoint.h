#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>

#include "refrain/detail/rerun.h"

namespace refrain {

namespace tape {
class OffloadStore;
}
class OffloadStore;
class OpContext;
class RegionInputs;
enum class CheckpointPolicy : int;
/// What to do with the results of one operator; see refrain/selective.h.
/// Threads: called on the thread that runs the region, without any lock; operators it runs are not recorded.
using Policy = std::function<CheckpointPolicy(const OpContext&)>;

/// How backward gets back what forward did not keep.
enum class RecomputeMode {
  kReplayOperators,  ///< the recorded operators run again, below autograd; the function does not
  kRerunFunction,    ///< the function is called again, as torch.utils.checkpoint does
};

/// What `kRerunFunction` compares between the two calls of the function.
enum class DeterminismCheck {
  kDefault,  ///< as torch.utils.checkpoint's "default": number, sizes, dtypes and devices of the tensors that autograd saves
  kStrict,   ///< that; every operator below autograd with all its arguments and who of them wants a gradient; and what it read from
             ///< outside: the same tensor, at the same version, not written by the first call, with the same bytes as far as a
             ///< sample of 64 words shows (host memory, without a `MemoryCap`); and LibTorch's switches. Left out: a backward inside
  kNone,     ///< nothing but their number
};

/// Called to enter a scope; the object it returns is destroyed to leave it.
using ContextScope = std::function<std::shared_ptr<void>()>;
/// Called once for each `checkpoint` call; the scopes to enter in forward and when the function is called again.
using ContextFunction = std::function<std::pair<ContextScope, ContextScope>()>;

/// How one `checkpoint` call behaves. Setters chain: `CheckpointOptions().preserve_rng_state(false)`.
class CheckpointOptions {
 public:
  /// Default: `kReplayOperators`. `kRerunFunction` is for functions that compute with raw pointers where the tape cannot see it, and a
  /// reference to compare with: the function, its captures and its arguments are copied and kept until backward (capture
  /// by value: what a reference named may be gone), its side effects happen twice (BatchNorm statistics move twice).
  /// Arguments, and tensors that it read from outside, changed in between are an error. A `checkpoint` called inside without a
  /// policy is rerun too. Functions are called again on several threads at once, those of one `checkpoint` call one after another.
  /// LibTorch's warnings are not repeated; what the function itself prints is.
  CheckpointOptions& recompute_mode(RecomputeMode value) {
    recompute_mode_ = value;
    return *this;
  }
  RecomputeMode recompute_mode() const { return recompute_mode_; }

  /// Whether a replayed random operator draws the numbers it drew in forward. Default: true.
  ///
  /// With `false` no generator state is read in forward (saves about 1 us and 5 KB per random operator on CPU) and a
  /// replayed random operator is refused with `CheckpointError` if backward needs one: a fresh draw would be a silently
  /// wrong gradient. Use it for code known to be free of random operators. A rerun with `false` draws
  /// fresh numbers, but from generators among its arguments.
  CheckpointOptions& preserve_rng_state(bool value) {
    preserve_rng_state_ = value;
    return *this;
  }
  bool preserve_rng_state() const { return preserve_rng_state_; }

  /// Which operators' results to keep rather than compute again: see refrain/selective.h. Default: none is kept.
  /// Holds for this region, not for regions opened inside it.
  CheckpointOptions& policy(Policy value) {
    policy_ = value ? std::make_shared<const Policy>(std::move(value)) : nullptr;
    return *this;
  }
  const std::shared_ptr<const Policy>& policy() const { return policy_; }

  /// Where `CheckpointPolicy::kOffload` puts bytes: see refrain/offload.h. Default: what `set_offload_store` says. Holds for this
  /// region, not for regions opened inside it.
  CheckpointOptions& offload(const OffloadStore& store);
  const std::shared_ptr<tape::OffloadStore>& offload() const { return offload_; }

  /// Where the tensors among the arguments are until backward: see `ActivationCheckpointing`, whose `options` set this,
  /// in refrain/activation_checkpointing.h. Default, null: in memory. Holds for this region, not for those inside it.
  CheckpointOptions& input_storage(std::shared_ptr<RegionInputs> value) {
    input_storage_ = std::move(value);
    return *this;
  }
  const std::shared_ptr<RegionInputs>& input_storage() const { return input_storage_; }

  /// The tensors among the arguments go to the `offload` store until backward: `inputs` with `cpu_checkpointing`.
  /// Default: false.
  CheckpointOptions& offload_to_cpu(bool value);

  /// `kRerunFunction` only: how two calls are compared. Default: `kStrict`. Its cost: about 0.5 us per operator and call, and 0.1 KB per
  /// operator until backward. Ask for `kDefault` if the calls differ on purpose (by `is_recomputing`, or because the first one fills
  /// a cache) and the gradients are right all the same.
  CheckpointOptions& determinism_check(DeterminismCheck value) {
    determinism_check_ = value;
    return *this;
  }
  DeterminismCheck determinism_check() const { return determinism_check_; }

  /// `kRerunFunction` only: stop the second call at the first operator after the last that backward needs, by an exception that is
  /// no `std::exception` and passes through the function. Default: true. `false` if the function has side effects at its end that
  /// must happen again. Where the exception would not get through (a `noexcept` function or destructor in between, one that
  /// catches everything, code without unwind tables) the function runs on, to the next place where it does, or its end. Not seen is a
  /// `noexcept` function that the compiler has inlined into one that is not: there the process ends, so say `false`.
  CheckpointOptions& early_stop(bool value) {
    early_stop_ = value;
    return *this;
  }
  bool early_stop() const { return early_stop_; }

  /// `kRerunFunction` only: note every operator of both calls, and show both lists where they differ. Default: false.
  CheckpointOptions& debug(bool value) {
    debug_ = value;
    return *this;
  }
  bool debug() const { return debug_; }

  /// `kRerunFunction` only: scopes of your own around the function, one for forward and one for the second call. Default: none.
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

/// Whether this thread is inside the forward of a `checkpoint` region. Cost: a few ns.
bool is_checkpointing() noexcept;

/// Whether this thread is computing again what a region did not keep. With the replay source only operators run then, none
/// of your functions, so only custom operators, kernels and allocators can see `true`; with `kRerunFunction` the function sees it.
/// Cost: a few ns.
bool is_recomputing() noexcept;

/// Process-wide settings that go before those of `CheckpointOptions`; nullopt: the options decide. Return the old ones.
/// Threads: any; for regions opened from now on.
std::optional<bool> set_early_stop(std::optional<bool> value);
std::optional<bool> set_debug(std::optional<bool> value);
/// Process-wide: with `false`, `checkpoint` is a plain call on every thread. Returns the old setting. Default: true.
bool set_checkpointing_enabled(bool value);

/// While it lives, `early_stop` of regions opened on this thread, whatever options and process say. Nests.
class EarlyStopGuard {
 public:
  explicit EarlyStopGuard(bool value);
  ~EarlyStopGuard();
  EarlyStopGuard(const EarlyStopGuard&) = delete;
  EarlyStopGuard& operator=(const EarlyStopGuard&) = delete;
};

/// The same for `debug`.
class DebugGuard {
 public:
  explicit DebugGuard(bool value);
  ~DebugGuard();
  DebugGuard(const DebugGuard&) = delete;
  DebugGuard& operator=(const DebugGuard&) = delete;
};

/// While it lives, `checkpoint` is a plain call on this thread: nothing is recorded, everything is kept. To compare, to
/// debug, or for an evaluation that needs gradients of little. Regions that are open already go on. Nests.
class NoCheckpointGuard {
 public:
  NoCheckpointGuard();
  ~NoCheckpointGuard();
  NoCheckpointGuard(const NoCheckpointGuard&) = delete;
  NoCheckpointGuard& operator=(const NoCheckpointGuard&) = delete;
};

namespace detail {

/// Records every operator run on this thread until destroyed. Not movable: lives on the stack of `checkpoint`.
class RegionScope {
 public:
  explicit RegionScope(const CheckpointOptions& options);
  ~RegionScope();
  RegionScope(const RegionScope&) = delete;
  RegionScope& operator=(const RegionScope&) = delete;

  /// `CheckpointOptions::input_storage` gets to know the tensors in an argument, before the function is called.
  template <typename T>
  void add_inputs(const T& argument) {
    // `visit_tensors_in` wants to be able to change what it visits; this does not
    visit_tensors_in(const_cast<T&>(argument),
                     Overloaded{[&](at::Tensor& tensor) { add_input(tensor); }, [](at::Generator&) {}});
  }

 private:
  void add_input(const at::Tensor& tensor);
  void* region_ = nullptr;  ///< null with gradients disabled, under a `NoCheckpointGuard`, or if a plan chooses
  bool is_planned_ = false; ///< a step that is traced or planned chooses what of the region to recompute
};

/// Whether a `checkpoint` call on this thread now would call its function again in backward.
bool reruns(const CheckpointOptions& options);

/// `fn(args...)`; a member pointer on an object, pointer or module holder; a `std::shared_ptr` to something callable or
/// with a `forward`.
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
        "Pass a callable, a module, a module holder, a shared_ptr to a module, or &Class::method followed by the object.");
    return fn.forward(std::forward<Args>(args)...);
  }
}

template <typename F, typename... Args>
decltype(auto) checkpoint_rerun(const CheckpointOptions& options, F&& fn, Args&&... args) {
  RerunScope scope(options);
  if constexpr (std::is_nothrow_invocable_v<F, Args...>) scope.run_whole();
  if constexpr (kCanKeep<F> && (kCanKeep<Args> && ...)) {
    auto kept = std::make_shared<std::tuple<Kept<Args>...>>(Kept<Args>(Keep(), args)...);
    visit_tensors_in(*kept, Overloaded{[&](at::Tensor& tensor) { scope.save_input(std::exchange(tensor, at::Tensor())); },
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

/// Runs `fn(args...)` once, keeping for backward only what `fn` read from outside; the rest is replayed in backward.
///
/// The result is exactly what `fn` returns (any type). Gradients, random numbers, buffers and side effects are those of
/// a plain call, to the bit: backward replays recorded operators below autograd, each at most once per pass, and never
/// calls `fn` again. So BatchNorm statistics move once, prints print once, and `args` may be anything at all.
///
/// @param fn    a callable, a module, a module holder, a `std::shared_ptr` to one, or `&Class::method` with the object
///              as first argument.
/// @param args  forwarded to `fn` untouched.
/// @throws whatever `fn` throws; `InvalidArgument` for a null `fn` (or object of a member pointer), under forward-mode AD, vmap, or inference mode with
///         gradients switched on. In backward:
///         `CheckpointError` if a tensor that `fn` read from outside was changed since, so that replay would be wrong.
/// Cost: about 0.4 us per operator in forward, plus the replayed operators in backward. With gradients disabled
/// (inference mode too): a plain call.
/// Threads: may be called from several threads at once; backward may run on any thread.
/// Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016; here on operators, not functions.
template <typename F, typename... Args>
  requires(!std::is_same_v<std::remove_cvref_t<F>, CheckpointOptions>)
decltype(auto) checkpoint(F&& fn, Args&&... args) {
  return checkpoint(CheckpointOptions{}, std::forward<F>(fn), std::forward<Args>(args)...);
}

/// The same, with options first.
/// @throws also `InvalidArgument` for `kRerunFunction` with a policy, a `context_fn` without it, or something to keep for the second
///         call that cannot be copied; in backward `CheckpointError` if the second call did something else.
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
