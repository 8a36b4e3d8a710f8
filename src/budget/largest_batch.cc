#include "refrain/largest_batch.h"

#include <ATen/ThreadLocalState.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <optional>
#include <thread>

#include "refrain/memory.h"
#include "refrain/torch_error.h"

namespace refrain {
namespace {

/// Where the line through the two largest batches that fit meets the limit.
std::optional<int64_t> batch_at_limit(const std::vector<BatchTrial>& trials, Bytes limit, int64_t most) {
  const BatchTrial *last = nullptr, *before = nullptr;
  for (const auto& trial : trials) {
    if (!trial.fits) continue;
    if (last == nullptr || trial.batch > last->batch) {
      before = last;
      last = &trial;
    } else if (before == nullptr || trial.batch > before->batch) {
      before = &trial;
    }
  }
  if (before == nullptr || last->peak <= before->peak) return std::nullopt;
  const double per_example =
      static_cast<double>(last->peak - before->peak) / static_cast<double>(last->batch - before->batch);
  const double more = static_cast<double>(limit - last->peak) / per_example;
  return last->batch + static_cast<int64_t>(std::min(more, static_cast<double>(most)));
}

BatchTrial run_trial(const std::function<void(int64_t)>& step, Bytes limit, int64_t batch) {
  BatchTrial trial{.batch = batch};
  release_free_memory();  // of a larger batch before
  reset_peak_memory();
  try {
    const MemoryLimit guard(limit);
    run_on_own_thread([&] { step(batch); });
    trial.fits = true;
  } catch (const std::exception& error) {
    if (!is_out_of_memory(error)) throw;
  }
  trial.peak = memory_stats().peak;
  trial.resident_peak = memory_stats().resident_peak;
  return trial;
}

}  // namespace

bool is_out_of_memory(const std::exception& error) noexcept {
  if (dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr ||
      dynamic_cast<const std::bad_alloc*>(&error) != nullptr)
    return true;
  const auto* const torch_error = dynamic_cast<const c10::Error*>(&error);
  return torch_error != nullptr && torch_error->msg().find("can't allocate memory") != std::string::npos;
}

void run_on_own_thread(const std::function<void()>& fn) {
  const at::ThreadLocalState caller;
  std::exception_ptr error;
  std::thread thread([&] {
    try {
      const at::ThreadLocalStateGuard state(caller);
      fn();
    } catch (...) {
      error = std::current_exception();
    }
  });
  thread.join();
  if (error) std::rethrow_exception(error);
}

LargestBatch largest_batch(const std::function<void(int64_t batch)>& step, Bytes limit,
                           const LargestBatchOptions& options) {
  constexpr int64_t kLongestLeap = 8;
  constexpr size_t kGuesses = 8;
  const int64_t least = options.min_batch(), most = options.max_batch();
  if (least < 1 || most < least)
    throw InvalidArgument(fmt::format(
        "[refrain::largest_batch] `min_batch` is {} and `max_batch` {}, expected at least 1 and at least `min_batch`",
        least, most));
  if (limit < 0)
    throw InvalidArgument(fmt::format("[refrain::largest_batch] `limit` is {}, expected 0 or more bytes", limit));
  install_memory_tracking();
  LargestBatch found;
  int64_t fits = least - 1, fails = most + 1, next = least;
  while (fails - fits > 1) {
    const BatchTrial trial = run_trial(step, limit, next);
    found.trials.push_back(trial);
    if (trial.fits) {
      fits = next;
      found.peak = trial.peak;
      found.resident_peak = trial.resident_peak;
    } else {
      fails = next;
    }
    const bool is_open = fails > most;
    const auto guess = batch_at_limit(found.trials, limit, most);
    next = is_open ? 2 * fits : fits + (fails - fits) / 2;
    if (guess && (is_open || found.trials.size() < kGuesses)) next = *guess;
    if (is_open) next = std::min(next, kLongestLeap * fits);
    next = std::clamp(next, fits + 1, std::max(fits + 1, fails - 1));
  }
  found.batch = fits < least ? 0 : fits;
  if (fails <= most) {
    found.next_batch = fails;
    found.next_peak = run_trial(step, std::numeric_limits<Bytes>::max(), fails).peak;
  }
  return found;
}

size_t choose_alternative(const std::vector<Alternative>& all) {
  constexpr double kSameOverhead = 0.02;  // closer ones differ by noise
  if (all.empty()) throw InvalidArgument("[refrain::choose_alternative] found no alternative, expected at least one");
  if (all.front().fits) return 0;
  const auto is_better = [](const Alternative& a, const Alternative& b) {
    if (a.fits != b.fits) return a.fits;
    if (!a.fits) return a.max_batch > b.max_batch;
    const double gap = a.overhead - b.overhead;
    return std::abs(gap) > kSameOverhead ? gap < 0 : a.peak < b.peak;
  };
  size_t best = 0;
  for (size_t i = 1; i < all.size(); ++i)
    if (is_better(all[i], all[best])) best = i;
  return best;
}

}  // namespace refrain
