#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "refrain/api.h"
#include "refrain/bytes.h"
#include "refrain/checkpoint.h"

/// Reports the tensors that autograd saves in forward: whether each is kept, and why.
/// Source: JAX's `print_saved_residuals`.
namespace refrain {

namespace tape {
class Observer;
class SavedObserver;
}  // namespace tape

/// Describes a tensor that autograd saved, or one that a region holds for its replay alone (generator states too).
struct SavedTensor {
  std::string op;              ///< that made it: "aten::mm"; outside regions autograd's "MmBackward0"; "" where unknown
  std::vector<int64_t> sizes;  ///< empty for a number
  at::ScalarType dtype;
  Bytes bytes = 0;    ///< of its whole storage: a small view keeps all of it
  int region = -1;    ///< number of the `checkpoint` call, in order of opening; -1: outside all of them
  bool kept = false;  ///< the graph keeps it resident until backward
  /// Resident also without the graph, because a parameter, an input, the result or another tensor references it.
  bool referenced_elsewhere = false;
  bool shared = false;      ///< its bytes are counted in an earlier row already
  std::string reason = {};  ///< "kept by policy", "recomputed: 2 operators", "read from outside (parameter)", ...
};

/// Lists what `saved_tensors` found. The three sums count each storage once and share nothing.
struct REFRAIN_API SavedReport {
  std::vector<SavedTensor> tensors;      ///< in the order of saving; what is held for replays alone comes last
  Bytes kept_bytes = 0;                  ///< resident because of the graph only: what this forward costs until backward
  Bytes referenced_elsewhere_bytes = 0;  ///< saved, but resident without the graph too: costs nothing more
  Bytes recomputed_bytes = 0;            ///< saved, not resident: recomputed, or fetched, in backward
  int regions = 0;                       ///< `checkpoint` calls seen
  std::vector<std::string> hints;        ///< one line for each region that saves no memory, and what to do about it

  /// Returns a table of `tensors`, the sums, and the hints. Ends in a line break.
  [[nodiscard]] std::string text() const;
};

namespace detail {

/// Observes what this thread saves while it lives.
class REFRAIN_API SavedObserver {
 public:
  SavedObserver();
  ~SavedObserver();
  SavedObserver(const SavedObserver&) = delete;
  SavedObserver& operator=(const SavedObserver&) = delete;
  /// Reports what was saved until now.
  [[nodiscard]] SavedReport report() const;

 private:
  std::unique_ptr<tape::Observer> observer_;
  tape::SavedObserver* before_;
};

/// Writes `report.text()` to standard output.
REFRAIN_API void print(const SavedReport& report);

}  // namespace detail

/// Runs `fn(args...)`, reports what is saved for backward when it returns, and then releases the result.
///
/// `fn` may call `checkpoint` any number of times, nested too, and compute outside of it. Its results, gradients and
/// memory are those of a call without `saved_tensors`. With gradients disabled the report is empty. Exceptions of `fn`
/// pass through.
///
/// Not seen:
/// - what other threads save;
/// - what was saved before the call;
/// - the tensor that autograd makes of a number (8 bytes for `x * 2.0`);
/// - what a custom function keeps outside `save_for_backward`;
/// - of a region with `RecomputeMode::kRerunFunction`, anything but its inputs, which are shown as saved outside.
///
/// @param fn    as for `checkpoint`.
/// @param args  as for `checkpoint`.
/// @return  the saved tensors and their sums.
/// @throws InvalidArgument  inside a `checkpoint` region.
/// Cost: the call, and 0.5 us per saved tensor; then time in the square of the operators that a region recomputes.
/// Threads: any; observes the calling one.
template <typename F, typename... Args>
requires(!std::is_same_v<std::remove_cvref_t<F>, CheckpointOptions>) [[nodiscard]] SavedReport
    saved_tensors(F&& fn, Args&&... args) {
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

/// Runs `checkpoint(options, fn, args...)` and reports what is saved for backward, as above.
/// @param options  of the `checkpoint` call.
/// @param fn       as for `checkpoint`.
/// @param args     as for `checkpoint`.
/// @return  the saved tensors and their sums.
/// @throws InvalidArgument  inside a `checkpoint` region, and as `checkpoint`.
template <typename F, typename... Args>
[[nodiscard]] SavedReport saved_tensors(const CheckpointOptions& options, F&& fn, Args&&... args) {
  return saved_tensors(
      [&]() -> decltype(auto) { return checkpoint(options, std::forward<F>(fn), std::forward<Args>(args)...); });
}

/// Writes `saved_tensors(args...).text()` to standard output.
/// @param args  as for `saved_tensors`.
template <typename... Args>
void print_saved(Args&&... args) {
  detail::print(saved_tensors(std::forward<Args>(args)...));
}

}  // namespace refrain
