/// `RecomputeMode::kRerunFunction`: backward calls the function again, as torch.utils.checkpoint does. In forward
/// autograd is given places; the first place that a backward unpacks reruns the function, which fills them all.

#include "rerun/rerun.h"

#include <c10/core/impl/LocalDispatchKeySet.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/graph_task.h>

#include <algorithm>

#include "intercept/key.h"
#include "intercept/running.h"
#include "intercept/saving.h"
#include "intercept/storage_copy.h"
#include "intercept/tensor_meta.h"
#include "intercept/throw_path.h"
#include "intercept/unwarned.h"
#include "refrain/torch_error.h"
#include "rerun/stop_request.h"

namespace refrain::tape {
namespace {

WeakStorage no_storage() { return WeakStorage(c10::intrusive_ptr<c10::StorageImpl>()); }

// The tensor without history, and with the same version counter.
at::Tensor data_of(const at::Tensor& tensor) {
  const UnseenScope below;
  return tensor.tensor_data();
}

std::string describe(const at::Tensor& tensor) {
  return tape::describe(tensor.scalar_type(), tensor.sizes(), tensor.device());
}

}  // namespace

/// Object that autograd keeps instead of a tensor.
class Place final : public torch::autograd::SavedVariableHooks {
 public:
  explicit Place(std::shared_ptr<Rerun> rerun) : rerun_(std::move(rerun)) {}
  ~Place() override {
    if (index_ >= 0) rerun_->remove(static_cast<size_t>(index_));
  }
  void call_pack_hook(const at::Tensor& tensor) override { index_ = rerun_->add(this, tensor); }
  at::Tensor call_unpack_hook() override { return rerun_->get(static_cast<size_t>(index_)); }

 private:
  std::shared_ptr<Rerun> rerun_;
  int32_t index_ = -1;
};

/// The rerun under way: collects the tensors that autograd saves.
class Refilling final : public Saver {
 public:
  Refilling(Rerun& rerun, int32_t graph_task, size_t last_needed, OpTrace* trace)
      : stops_early(rerun.early_stop_ || rerun.open), rerun_(rerun), last_needed_(last_needed), trace_(trace) {
    stop.graph_task = graph_task;
    hook_depth = rerun.hook_depth;  // forward's hooks are set for the rerun
    if (open_) {
      stop.runs_on = [this] { copy_filled(); };
      stop.overwrites = [this](const at::Tensor& tensor) { copy_filled(&tensor); };
    }
    std::lock_guard lock(rerun_.mutex_);
    wanted_.reserve(rerun_.expected_.size());
    for (const auto& expected : rerun_.expected_)
      wanted_.push_back(expected.place != nullptr && !rerun_.find_saved_inside(wanted_.size()));
    filled.entries.resize(wanted_.size());
  }

  std::unique_ptr<torch::autograd::SavedVariableHooks> hooks() override;
  bool is_rerun() const override { return true; }

  /// @param argument  of an operator that has not run yet.
  void collect(const at::Tensor& tensor, bool argument) {
    const size_t index = count_++;
    if (complete_) return;
    if (index < wanted_.size()) {
      if (!compare(tensor, index)) return;
      if (wanted_[index]) {
        filled.entries[index].tensor = tensor;
        filled.entries[index].version = Version(tensor);
        if (stops_early) stop.saved(tensor, argument);
      }
    }
    if (stops_early && index == last_needed_) complete_ = stop.due = true;
  }

  bool complete() const { return complete_; }

  /// Checks the rerun after the function has returned or was stopped. @throws CheckpointError
  void finish() {
    if (failure_) std::rethrow_exception(failure_);
    if (rerun_.check_ == DeterminismCheck::kStrict && trace_ && (complete_ || !open_)) {
      const auto& first = *rerun_.trace_;
      for (const auto& what :
           {first.changed_since(*trace_), first.difference(*trace_, complete_, open_), first.other_values(*trace_)})
        if (!what.empty()) throw_different(what);
    }
    const bool compare_count = rerun_.check_ != DeterminismCheck::kNone && !open_;
    if (!complete_ && (count_ <= last_needed_ || (compare_count && count_ != wanted_.size())))
      throw_different(fmt::format("{} tensors were saved in forward, {} in the rerun", wanted_.size(), count_));
  }

  /// A function that is still in forward must not be rerun further than that: it may overwrite what is needed.
  const bool stops_early;
  Rerun::Filled filled;
  StopRequest stop;

 private:
  // Whether it is as expected, or is not checked.
  bool compare(const at::Tensor& tensor, size_t index) {
    const Rerun::Expected* expected;
    bool same_memory;
    {
      std::lock_guard lock(rerun_.mutex_);
      expected = &rerun_.expected_[index];
      same_memory = has_plain_storage(tensor) &&
                    expected->storage._unsafe_get_target() == tensor.storage().unsafeGetStorageImpl();
    }
    if (same_memory && expected->version.moved())
      return fail(
          fmt::format("[refrain::checkpoint] backward must rerun the function, but a tensor that it read from "
                      "outside in forward ({}) was changed since: it is {}. Move the change after backward, or "
                      "read a clone.",
                      expected->text(), expected->version.text()));
    if (rerun_.check_ == DeterminismCheck::kNone || !wanted_[index]) return true;
    if (tensor.scalar_type() == expected->dtype && tensor.sizes() == expected->sizes &&
        tensor.device() == expected->device)
      return true;
    if (trace_) {
      if (const auto what = rerun_.trace_->difference(*trace_, true, true); !what.empty()) return fail(different(what));
    }
    return fail(different(fmt::format("saved tensor {} of {} was {} in forward and {} in the rerun", index,
                                      wanted_.size(), expected->text(), describe(tensor))));
  }

  // Copies them, or those that move their version with `written`: the first call has not yet reached the operators that
  // would overwrite them.
  void copy_filled(const at::Tensor* written = nullptr) {
    const BelowTape below;
    for (auto& entry : filled.entries) {
      if (!entry.tensor.defined() || !has_plain_storage(entry.tensor)) continue;
      if (entry.version.moved() || (written && !entry.version.moves_with(*written))) continue;
      TensorMeta meta;
      meta.assign(entry.tensor);
      entry.tensor = meta.build(clone_storage(entry.tensor.storage()));
      entry.version = Version(entry.tensor);
    }
  }

  std::string different(const std::string& what) const {
    return fmt::format(
        "[refrain::checkpoint] the function did something else when backward reran it: {}. It must compute the same "
        "both times from its arguments and captures; recompute_mode(kReplayOperators) never reruns it.{}",
        what, rerun_.traces(trace_));
  }

  [[noreturn]] void throw_different(const std::string& what) const { throw CheckpointError(different(what)); }

  // Keeps the error as well as throws it, in case the function catches it, or nothing can be thrown through it.
  bool fail(const std::string& message) {
    failure_ = std::make_exception_ptr(CheckpointError(message));
    complete_ = true;
    stop.due = false;
    if (can_throw_to(stop.frame)) std::rethrow_exception(failure_);
    return false;
  }

  Rerun& rerun_;
  const bool open_ = rerun_.open;  ///< forward will save more than it has now
  const size_t last_needed_;
  OpTrace* const trace_;
  std::vector<bool> wanted_;
  size_t count_ = 0;
  bool complete_ = false;  ///< all that backward needs is saved; the rest is ignored
  std::exception_ptr failure_;
};

namespace {

/// Object that the graph of the rerun keeps: the tensor itself, for a backward inside the function.
class Collected final : public torch::autograd::SavedVariableHooks {
 public:
  explicit Collected(Refilling& refilling) : refilling_(refilling) {}
  void call_pack_hook(const at::Tensor& tensor) override {
    tensor_ = data_of(tensor);
    refilling_.collect(tensor_, !made_by_newest_node(tensor));
  }
  at::Tensor call_unpack_hook() override { return tensor_; }

 private:
  Refilling& refilling_;
  at::Tensor tensor_;
};

}  // namespace

std::unique_ptr<torch::autograd::SavedVariableHooks> Refilling::hooks() { return std::make_unique<Collected>(*this); }

namespace {

/// Sets this thread's state to that of forward: no region of the tape open, the given saver innermost, guards as then.
class ThreadScope {
 public:
  ThreadScope(const OpenScope& second_call, StopRequest* stop, GuardedValue<bool> early_stop,
              GuardedValue<bool> debug) {
    auto& thread = ThreadState::get();
    open_ = std::exchange(thread.open, {});
    stop_ = std::exchange(thread.stop, stop);
    offloads_ = std::exchange(thread.offloads, nullptr);
    recomputing_ = std::exchange(thread.recomputing, true);
    disabled_ = std::exchange(thread.disabled, 0);
    early_stop_ = std::exchange(thread.early_stop, std::move(early_stop));
    debug_ = std::exchange(thread.debug, std::move(debug));
    thread.opened(second_call);
  }
  ~ThreadScope() {
    auto& thread = ThreadState::get();
    thread.open = std::move(open_);
    thread.closed(this);
    thread.stop = stop_;
    thread.offloads = offloads_;
    thread.recomputing = recomputing_;
    thread.disabled = disabled_;
    thread.early_stop = std::move(early_stop_);
    thread.debug = std::move(debug_);
  }
  ThreadScope(const ThreadScope&) = delete;
  ThreadScope& operator=(const ThreadScope&) = delete;

 private:
  std::vector<OpenScope> open_;
  OpWatch* stop_;
  LateSaver* offloads_;
  bool recomputing_;
  int disabled_;
  GuardedValue<bool> early_stop_, debug_;
  AnnounceScope announced_{true};
};

// A frame of its own, with no handler: exceptions of ours must reach it. Not inlined, no tail call.
[[gnu::noinline]] void call_again(StopRequest& stop, const std::function<void(const detail::NextInput&)>& function,
                                  const detail::NextInput& next_input) {
  stop.frame = __builtin_frame_address(0);
  function(next_input);
  asm volatile("");
}

// Adds to an error of LibTorch's, which reaches the caller of backward, that it is from the region's function. The type
// stays.
[[noreturn]] void rethrow_from_second_call() {
  try {
    throw;
  } catch (const c10::OutOfMemoryError&) {
    throw;
  } catch (c10::Error& error) {
    error.add_context(
        "[refrain::checkpoint] thrown by a region's function, which backward reran (RecomputeMode::kRerunFunction)");
    throw;
  }
}

}  // namespace

// Its inputs may hold the graph of the region before, and so on: destroyed by a loop, not by recursion.
Rerun::~Rerun() {
  {
    TapeLock lock;
    --lock.tape().stats.live_regions;
  }
  using Remains = std::pair<std::vector<SavedInput>, std::function<void(const detail::NextInput&)>>;
  static thread_local std::vector<Remains>* queue = nullptr;
  if (queue) {
    queue->emplace_back(std::move(inputs), std::move(again));
    return;
  }
  std::vector<Remains> mine;
  queue = &mine;
  mine.emplace_back(std::move(inputs), std::move(again));
  while (!mine.empty()) {
    const auto next = std::move(mine.back());
    mine.pop_back();
  }
  queue = nullptr;
}

std::unique_ptr<torch::autograd::SavedVariableHooks> Rerun::hooks() {
  return std::make_unique<Place>(shared_from_this());
}

int32_t Rerun::add(Place* place, const at::Tensor& tensor) {
  std::vector<SavedInside> dead;  // freed after the lock
  std::lock_guard lock(mutex_);
  if (open && torch::autograd::get_current_graph_task_id() != task_outside_)
    saved_inside_.push_back({expected_.size(), data_of(tensor)});
  else
    dead.swap(saved_inside_);
  auto& expected = expected_.emplace_back(
      Expected{place, tensor.sizes().vec(), tensor.scalar_type(), tensor.device(), no_storage(), Version(tensor)});
  if (has_plain_storage(tensor)) expected.storage = tensor.storage().getWeakStorageImpl();
  return static_cast<int32_t>(expected_.size() - 1);
}

void Rerun::remove(size_t index) {
  std::vector<at::Tensor> dead;  // freed after the lock
  std::lock_guard lock(mutex_);
  expected_[index].place = nullptr;
  if (const auto* saved = find_saved_inside(index)) {
    dead.push_back(saved->tensor);
    saved_inside_.erase(saved_inside_.begin() + (saved - saved_inside_.data()));
  }
  for (auto& [task, filled] : filled_)
    if (index < filled.entries.size()) dead.push_back(std::exchange(filled.entries[index], Filled::Entry()).tensor);
}

void Rerun::forward_ended() {
  std::vector<SavedInside> dead;  // freed after the lock
  std::lock_guard lock(mutex_);
  open = false;
  dead.swap(saved_inside_);
}

const Rerun::SavedInside* Rerun::find_saved_inside(size_t index) const {
  const auto found = std::lower_bound(saved_inside_.begin(), saved_inside_.end(), index,
                                      [](const SavedInside& saved, size_t wanted) { return saved.index < wanted; });
  return found != saved_inside_.end() && found->index == index ? &*found : nullptr;
}

at::Tensor Rerun::get(size_t index) {
  {
    std::lock_guard lock(mutex_);
    refuse_overwritten(expected_[index], expected_[index].version);
    if (const auto* saved = find_saved_inside(index)) return saved->tensor;
  }
  const int32_t task = torch::autograd::get_current_graph_task_id();
  if (auto tensor = take(task, index); tensor.defined()) return tensor;
  std::lock_guard one_at_a_time(calling_);
  if (auto tensor = take(task, index); tensor.defined()) return tensor;
  fill(task, index);
  auto tensor = take(task, index);
  if (task < 0) drop(task);
  TORCH_INTERNAL_ASSERT(tensor.defined(), "[refrain] a rerun did not save tensor ", index);
  return tensor;
}

// Refuses a tensor that was overwritten since autograd saved it, in forward or by the rerun, as autograd itself does.
void Rerun::refuse_overwritten(const Expected& expected, const Version& version) {
  if (!version.moved()) return;
  throw CheckpointError(fmt::format(
      "[refrain::checkpoint] one of the variables needed for gradient computation has been modified by an inplace "
      "operation: {} is {}. Modify a clone, move the change after backward, or use recompute_mode(kReplayOperators), which knows the old "
      "value of what the function computed.",
      expected.text(), version.text()));
}

at::Tensor Rerun::take(int32_t task, size_t index) {
  std::lock_guard lock(mutex_);
  const auto found = filled_.find(task);
  if (found == filled_.end() || index >= found->second.entries.size()) return {};
  auto& entry = found->second.entries[index];
  refuse_overwritten(expected_[index], entry.version);
  if (entry.tensor.defined()) {
    if (has_plain_storage(entry.tensor)) {
      entry.meta.assign(entry.tensor);
      entry.storage = entry.tensor.storage().getWeakStorageImpl();
    }
    return std::move(entry.tensor);
  }
  if (auto storage = entry.storage.lock()) return entry.meta.build(c10::Storage(std::move(storage)));
  return {};
}

void Rerun::fill(int32_t task, size_t asked) {
  size_t last = asked;
  {
    std::lock_guard lock(mutex_);
    for (size_t i = asked; i < expected_.size(); ++i)
      if (expected_[i].place && !find_saved_inside(i)) last = i;
  }
  std::vector<at::Tensor> tensors;
  tensors.reserve(inputs.size());
  for (const auto& input : inputs) tensors.push_back(input.get(tensors.size()));

  std::unique_ptr<OpTrace> trace;
  if (trace_) {
    trace = std::make_unique<OpTrace>(debug_);
    trace->start(trace_.get());
    for (const auto& tensor : tensors) trace->add_input(tensor);
  }
  Refilling refilling(*this, task, last, trace.get());
  {
    SurroundingsScope surroundings(surroundings_);
    SecondDraws draws(draws_, open);
    const ThreadScope thread({.owner = this, .saver = &refilling, .trace = trace.get(), .draws = draws.get()},
                             refilling.stops_early ? &refilling.stop : nullptr, thread_early_stop_, thread_debug_);
    const Unwarned unwarned;
    const bool look =
        refilling.stops_early || trace || draws_.any() || Tape::get().pending_slots.load(std::memory_order_relaxed) > 0;
    if (look) set_tape_included(true);
    const auto scope = rerun_scope ? rerun_scope() : nullptr;
    const RecomputeScope recompute(work.get());
    size_t next = 0;
    try {
      call_again(refilling.stop, again, [&] { return std::move(tensors.at(next++)); });
    } catch (const EarlyStop&) {
      if (!refilling.complete()) throw;
    } catch (...) {  // what the function throws before the next operator
      if (!refilling.complete() || refilling.stop.writing) rethrow_from_second_call();
    }
  }
  refilling.finish();
  if (task >= 0) drop_after(task);
  {
    std::lock_guard lock(mutex_);
    for (size_t i = 0; i < refilling.filled.entries.size(); ++i)
      if (!expected_[i].place) refilling.filled.entries[i] = Filled::Entry();
    filled_[task] = std::move(refilling.filled);
  }
  TapeLock tape;
  ++tape.tape().stats.reruns;
}

// Drops recomputed tensors that this graph task did not read when it ends, or fails.
void Rerun::drop_after(int32_t task) {
  struct AtEnd {
    std::shared_ptr<Rerun> rerun;
    int32_t task;
    AtEnd(std::shared_ptr<Rerun> r, int32_t t) : rerun(std::move(r)), task(t) {}
    ~AtEnd() { rerun->drop(task); }
    AtEnd(const AtEnd&) = delete;
    AtEnd& operator=(const AtEnd&) = delete;
  };
  torch::autograd::Engine::get_default_engine().queue_callback(
      [end = std::make_shared<AtEnd>(shared_from_this(), task)]() mutable { end.reset(); });
}

void Rerun::drop(int32_t task) {
  Filled dead;  // freed after the lock
  std::lock_guard lock(mutex_);
  const auto found = filled_.find(task);
  if (found == filled_.end()) return;
  dead = std::move(found->second);
  filled_.erase(found);
}

std::string Rerun::traces(const OpTrace* second) const {
  if (!debug_ || !second) return " CheckpointOptions().debug(true) shows the operators of both calls.";
  return fmt::format("\noperators in forward:\n{}operators in the rerun:\n{}", trace_->text(), second->text());
}

}  // namespace refrain::tape
