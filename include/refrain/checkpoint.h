#pragma once

#include <functional>
#include <memory>
#include <type_traits>
#include <utility>

namespace refrain {

class OpContext;
enum class CheckpointPolicy : int;
/// What to do with the results of one operator; see refrain/selective.h.
/// Threads: called on the thread that runs the region, without any lock; operators it runs are not recorded.
using Policy = std::function<CheckpointPolicy(const OpContext&)>;

/// How one `checkpoint` call behaves. Setters chain: `CheckpointOptions().preserve_rng_state(false)`.
class CheckpointOptions {
 public:
  /// Whether a replayed random operator draws the numbers it drew in forward. Default: true.
  ///
  /// With `false` no generator state is read in forward (saves about 1 us and 5 KB per random operator on CPU) and a
  /// replayed random operator is refused with `CheckpointError` if backward needs one: a fresh draw would be a silently
  /// wrong gradient. Use it for code known to be free of random operators.
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

 private:
  std::shared_ptr<const Policy> policy_;
  bool preserve_rng_state_ = true;
};

/// Whether this thread is inside the forward of a `checkpoint` region. Cost: a few ns.
bool is_checkpointing() noexcept;

/// Whether this thread is computing again what a region did not keep. With the replay source only operators run then, none
/// of your functions, so only custom operators, kernels and allocators can see `true`. Cost: a few ns.
bool is_recomputing() noexcept;

/// While it lives, `checkpoint` is a plain call on this thread: nothing is recorded, everything is kept. To compare, to
/// debug, or for an evaluation that needs gradients of little. Regions that are open already go on. Nests.
class NoCheckpointGuard {
 public:
  NoCheckpointGuard();
  ~NoCheckpointGuard();
  NoCheckpointGuard(const NoCheckpointGuard&) = delete;
  NoCheckpointGuard& operator=(const NoCheckpointGuard&) = delete;

 private:
  bool before_;
};

namespace detail {

/// Records every operator run on this thread until destroyed. Not movable: lives on the stack of `checkpoint`.
class RegionScope {
 public:
  explicit RegionScope(const CheckpointOptions& options);
  ~RegionScope();
  RegionScope(const RegionScope&) = delete;
  RegionScope& operator=(const RegionScope&) = delete;

 private:
  void* region_ = nullptr;  ///< null with gradients disabled, or under a `NoCheckpointGuard`
};

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
/// @throws whatever `fn` throws; `InvalidArgument` under forward-mode AD, vmap, or inference mode with
///         gradients switched on. In backward:
///         `CheckpointError` if a tensor that `fn` read from outside was changed since, so that replay would be wrong.
/// Cost: about 0.4 us per operator in forward, plus the replayed operators in backward. With gradients disabled
/// (inference mode too): a plain call.
/// Threads: may be called from several threads at once; backward may run on any thread.
/// Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016; here on operators, not functions.
template <typename F, typename... Args>
  requires(!std::is_same_v<std::remove_cvref_t<F>, CheckpointOptions>)
decltype(auto) checkpoint(F&& fn, Args&&... args) {
  detail::RegionScope region{CheckpointOptions{}};
  return detail::call(std::forward<F>(fn), std::forward<Args>(args)...);
}

/// The same, with options first.
template <typename F, typename... Args>
decltype(auto) checkpoint(const CheckpointOptions& options, F&& fn, Args&&... args) {
  detail::RegionScope region{options};
  return detail::call(std::forward<F>(fn), std::forward<Args>(args)...);
}

}  // namespace refrain
