#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "refrain/checkpoint.h"

/// Seeing what a forward leaves behind for backward: every tensor that autograd saved, whether it is kept, and why.
/// Source: JAX's `print_saved_residuals`.
namespace refrain {

namespace tape {
class Observer;
class SavedObserver;
}

/// A tensor that autograd saved, or one that a region holds for its replay alone (generator states too).
struct SavedTensor {
  std::string op;              ///< what made it: "aten::mm"; autograd's "MmBackward0" outside regions; "" where unknown
  std::vector<int64_t> sizes;  ///< empty for a number
  at::ScalarType dtype;
  int64_t bytes = 0;  ///< of its whole storage: a small view keeps all of it
  int region = -1;    ///< number of the `checkpoint` call, in order of opening; -1: outside all of them
  bool kept = false;  ///< the graph keeps it in memory until backward
  /// In memory also without the graph, because a parameter, an input, the result or another tensor is there.
  bool referenced_elsewhere = false;
  bool shared = false;  ///< its bytes are counted in an earlier row already
  std::string reason = {}; ///< "kept by policy", "recomputed: 2 operators", "read from outside (parameter)", ...
};

/// What `saved_tensors` found. The three sums count each storage once and share nothing.
struct SavedReport {
  std::vector<SavedTensor> tensors;  ///< in the order of saving; what is held for replays alone comes last
  int64_t kept_bytes = 0;            ///< in memory because of the graph only: what this forward costs until backward
  int64_t referenced_elsewhere_bytes = 0;    ///< saved, but in memory without the graph too: costs nothing more
  int64_t recomputed_bytes = 0;      ///< saved, not in memory: computed again, or fetched, in backward
  int regions = 0;                   ///< `checkpoint` calls seen
  std::vector<std::string> hints;  ///< one line for each region that saves no memory, and what to do about it

  /// A table of `tensors`, the sums, and the hints. Ends in a line break.
  std::string text() const;
};

namespace detail {

/// Observes this thread while it lives.
class SavedObserver {
 public:
  SavedObserver();
  ~SavedObserver();
  SavedObserver(const SavedObserver&) = delete;
  SavedObserver& operator=(const SavedObserver&) = delete;
  SavedReport report() const;

 private:
  std::unique_ptr<tape::Observer> observer_;
  tape::SavedObserver* before_;
};

void print(const SavedReport& report);

}  // namespace detail

/// Runs `fn(args...)` and says what is saved for backward when it returns; then lets go of the result.
///
/// `fn` may call `checkpoint` any number of times, nested too, and compute outside of it. Its results, gradients and
/// memory are those of a plain call. With gradients disabled the report is empty.
///
/// What is not seen: what other threads save; what was saved before the call; the tensor that autograd makes of a
/// number (8 bytes for `x * 2.0`); what a custom function keeps outside `save_for_backward`; of a region with
/// `RecomputeMode::kRerunFunction` anything but its inputs, which are shown as saved outside.
/// @param fn, args  as for `checkpoint`.
/// @throws whatever `fn` throws; `InvalidArgument` inside a `checkpoint` region.
/// Cost: the call, and 0.5 us a saved tensor; then time in the square of the operators that a region runs again.
/// Threads: any; observes the calling one.
template <typename F, typename... Args>
  requires(!std::is_same_v<std::remove_cvref_t<F>, CheckpointOptions>)
SavedReport saved_tensors(F&& fn, Args&&... args) {
  const detail::SavedObserver observer;
  const auto run = [&]() -> decltype(auto) { return detail::call(std::forward<F>(fn), std::forward<Args>(args)...); };
  if constexpr (std::is_void_v<decltype(run())>) {
    run();
    return observer.report();
  } else {
    [[maybe_unused]] decltype(auto) result = run();  // alive while the report is made: the graph hangs on it
    return observer.report();
  }
}

/// The same for `checkpoint(options, fn, args...)`.
template <typename F, typename... Args>
SavedReport saved_tensors(const CheckpointOptions& options, F&& fn, Args&&... args) {
  return saved_tensors([&]() -> decltype(auto) {
    return checkpoint(options, std::forward<F>(fn), std::forward<Args>(args)...);
  });
}

/// Writes `saved_tensors(args...).text()` to standard output.
template <typename... Args>
void print_saved(Args&&... args) {
  detail::print(saved_tensors(std::forward<Args>(args)...));
}

}  // namespace refrain
