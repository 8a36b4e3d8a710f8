#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <string>
#include <vector>

#include "refrain/api.h"
#include "refrain/bytes.h"

/// Which batch fits, and which way of training to take.
namespace refrain {

/// How `largest_batch` searches. Setters chain: `LargestBatchOptions().min_batch(8)`.
class LargestBatchOptions {
 public:
  /// Smallest batch to try, >= 1: some models need two examples. Default: 1.
  LargestBatchOptions& min_batch(int64_t value) {
    min_batch_ = value;
    return *this;
  }
  int64_t min_batch() const { return min_batch_; }

  /// Largest batch to try, at least `min_batch`. Default: 2^20.
  LargestBatchOptions& max_batch(int64_t value) {
    max_batch_ = value;
    return *this;
  }
  int64_t max_batch() const { return max_batch_; }

 private:
  int64_t min_batch_ = 1, max_batch_ = int64_t{1} << 20;
};

/// One step that `largest_batch` ran. Bytes are absolute, as `memory_stats()`.
struct BatchTrial {
  int64_t batch = 0;
  bool fits = false;
  Bytes peak = 0;           ///< level reached before the refusal, if it does not fit
  Bytes resident_peak = 0;  ///< likewise, resident bytes of the process
};

/// Result of `largest_batch`. Bytes are absolute, as `memory_stats()`.
struct LargestBatch {
  int64_t batch = 0;               ///< 0: not even `min_batch` fits
  int64_t next_batch = 0;          ///< one more, which does not fit; 0 if `batch` is `max_batch`
  Bytes peak = 0;                  ///< of `batch`
  Bytes next_peak = 0;             ///< of `next_batch`, run without the limit
  Bytes resident_peak = 0;         ///< of `batch`
  std::vector<BatchTrial> trials;  ///< in the order in which they ran
};

/// Finds the largest batch whose step keeps a limit, by running steps.
///
/// Doubles the batch until it does not fit, then halves the gap; as soon as two trials fit, tries where the straight line of peak over
/// batch meets the limit. Ends when one batch fits and the next does not.
///
///     const auto found = refrain::largest_batch([&](int64_t batch) { optimizer.zero_grad(); loss_of(batch).backward(); }, 2_GiB);
///
/// @param step   a whole step of a batch of so many examples, from forward to the end of backward. It can be run again and again, also
///   after a refusal: it begins with dropping the gradients that one that was stopped half-way leaves. It runs on a thread of its own,
///   so that what LibTorch's engine keeps after an error dies with that, under the caller's grad mode and autocast.
/// @param limit  bytes of tensors, absolute.
/// @return what was found; `batch` is 0 if nothing fits.
/// @throws InvalidArgument  if an option is out of range; what `step` throws, but for a lack of memory.
/// Cost: some 10 to 20 steps. Threads: the calling one waits.
[[nodiscard]] REFRAIN_API LargestBatch largest_batch(const std::function<void(int64_t batch)>& step, Bytes limit,
                                                     const LargestBatchOptions& options = {});

/// A way to train, measured.
struct Alternative {
  std::string name;
  bool fits = false;        ///< the batch that is wanted, within the limit
  Bytes peak = 0;           ///< absolute; of the batch that is wanted
  Bytes resident_peak = 0;  ///< likewise, resident bytes of the process; 0 if unknown
  double overhead = 0;      ///< time added to a step, as a fraction of the baseline's
  int64_t max_batch = 0;    ///< largest that fits
};

/// Chooses the fastest alternative that fits; among those within 2 % of each other, the one with the lower peak; if none fits, the one
/// with the largest batch.
/// @param all  at least one; the first is the baseline, which is chosen if it fits.
/// @return index in `all`.
/// @throws InvalidArgument  if `all` is empty.
[[nodiscard]] REFRAIN_API size_t choose_alternative(const std::vector<Alternative>& all);

/// Runs `fn` on a thread of its own, under the caller's thread-local state of LibTorch (grad mode, autocast), and waits
/// for it; what it throws is thrown here.
///
/// For steps that may run out of memory: after an error in backward LibTorch's engine keeps the rest of the graph, and so its activations,
/// in a queue of the thread that called it, until that thread ends.
/// Cost: starting a thread, some 20 us.
REFRAIN_API void run_on_own_thread(const std::function<void()>& fn);

/// Whether an exception is a lack of memory: a limit of this library's, or LibTorch's allocator being refused memory by the system.
/// Call it in a `catch` block.
[[nodiscard]] REFRAIN_API bool is_out_of_memory(const std::exception& error) noexcept;

}  // namespace refrain
