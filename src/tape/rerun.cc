/// The second source: the function is called again in backward, as torch.utils.checkpoint does. In forward autograd is given
/// places; the first place asked for in a backward calls the function again, which fills them all.

#include <ATen/SequenceNumber.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <map>
#include <mutex>

#include "refrain/checkpoint.h"
#include "refrain/error.h"
#include "tape/engine.h"
#include "tape/evict.h"
#include "tape/draws.h"
#include "tape/for_each_tensor.h"
#include "tape/op_trace.h"
#include "tape/key.h"
#include "tape/region_inputs.h"
#include "tape/running.h"
#include "tape/storage_copy.h"
#include "tape/surroundings.h"
#include "tape/tape.h"
#include "tape/throw_path.h"
#include "tape/unwarned.h"

namespace refrain::tape {
namespace {

/// Passes through the user's function once everything is there. Not a `std::exception`, so that fewer handlers stop it.
struct EarlyStop {};

/// Whether the version counter of a tensor has moved.
class Version {
 public:
  Version() = default;
  explicit Version(const at::Tensor& tensor) {
    if (tensor.is_inference()) return;
    counter_ = tensor.unsafeGetTensorImpl()->version_counter();
    version_ = counter_.current_version();
  }
  bool moved() const { return counter_.enabled() && counter_.current_version() != version_; }
  std::string text() const { return fmt::format("at version {}, expected version {}", counter_.current_version(), version_); }

 private:
  c10::VariableVersion counter_;
  uint32_t version_ = 0;
};

using WeakStorage = c10::weak_intrusive_ptr<c10::StorageImpl>;
WeakStorage no_storage() { return WeakStorage(c10::intrusive_ptr<c10::StorageImpl>()); }

// Without history, and with the same version counter.
at::Tensor data_of(const at::Tensor& tensor) {
  const UnseenScope below;
  return tensor.tensor_data();
}

std::string describe(const at::Tensor& tensor) {
  return tape::describe(tensor.scalar_type(), tensor.sizes(), tensor.device());
}

uint64_t hash_of_pinned(const at::Tensor& tensor) {
  const Pinned bytes(tensor);
  return hash_of(tensor.storage());
}

/// A tensor argument, kept so that an enclosing region need not hold its bytes, and without a cycle if the function
/// overwrites it.
class SavedInput {
 public:
  explicit SavedInput(const at::Tensor& tensor) {
    if (!tensor.defined()) return;
    if (tensor.is_inference()) {
      plain_ = tensor;
      return;
    }
    version_ = Version(tensor);
    text_ = describe(tensor);
    if (has_plain_storage(tensor) && (Tape::get().check_inputs.load(std::memory_order_relaxed) || is_borrowed(tensor.storage())))
      hash_ = hash_of_pinned(tensor);
    try {
      grad_fn_ = tensor.grad_fn();
    } catch (const c10::Error&) {  // a view from no_grad whose base was overwritten: autograd refuses it once it is used
      plain_ = tensor;
      return;
    }
    without_edge_ = tensor.requires_grad() && !grad_fn_ && !torch::autograd::impl::get_autograd_meta(tensor)->requires_grad_;
    const auto history = tensor.requires_grad() && !without_edge_ ? tensor : tensor.detach();
    saved_ = torch::autograd::SavedVariable(history, grad_fn_ != nullptr);
  }

  at::Tensor get(size_t index) const {
    if (version_.moved())
      throw CheckpointError(fmt::format(
          "[refrain::checkpoint] backward must call the function again, but its input tensor {} ({}) was changed since "
          "forward: it is {}. Pass a clone, move the change after backward, or use source(kReplay).",
          index, text_, version_.text()));
    if (plain_.defined()) return plain_;
    auto tensor = saved_.unpack(grad_fn_);
    if (hash_ && hash_of_pinned(tensor) != *hash_)
      throw CheckpointError(fmt::format(
          "[refrain::checkpoint] backward must call the function again, but its input tensor {} ({}) holds other bytes than in forward: it was "
          "filled again through a pointer. Pass a clone, move the change after backward, or use source(kReplay), which copies what it can see.",
          index, text_));
    if (!without_edge_) return tensor;
    at::NoGradGuard no_grad;
    return at::alias(tensor.detach().requires_grad_());
  }

 private:
  torch::autograd::SavedVariable saved_;
  std::remove_cvref_t<decltype(std::declval<at::Tensor>().grad_fn())> grad_fn_;
  at::Tensor plain_;
  bool without_edge_ = false;  ///< a view from no_grad of a leaf: says that it requires a gradient, and passes none on
  Version version_;
  std::string text_;
  std::optional<uint64_t> hash_;  ///< of borrowed memory, and while `set_check_inputs` is on
};

class Place;

/// One `checkpoint` call with source(kRerun). Owned by its scope and by the places that autograd holds.
class Rerun final : public Saver, public std::enable_shared_from_this<Rerun> {
 public:
  explicit Rerun(const CheckpointOptions& options, bool early_stop, bool debug)
      : work(options.inputs() ? options.inputs()->open(options) : nullptr), check_(options.determinism_check()),
        early_stop_(early_stop), debug_(debug),
        draws_(options.preserve_rng_state()) {
    if (options.preserve_rng_state()) draws_.add_default_generators();
    if (debug || check_ == DeterminismCheck::kStrict) {
      trace_ = std::make_unique<OpTrace>(debug);
      trace_->start(nullptr);
    }
    TapeLock lock;
    ++lock.tape().stats.live_regions;
  }

  ~Rerun();

  Rerun(const Rerun&) = delete;
  Rerun& operator=(const Rerun&) = delete;

  std::unique_ptr<torch::autograd::SavedVariableHooks> hooks() override;
  bool is_rerun() const override { return true; }

  int32_t add(Place* place, const at::Tensor& tensor);
  void remove(size_t index);
  at::Tensor get(size_t index);
  void forward_ended();

  void add_input(const at::Tensor& tensor) {
    const ParkingScope parking(work.get(), tensor);
    inputs.emplace_back(tensor);
    if (trace_) trace_->add_input(tensor);
  }

  const std::shared_ptr<RegionWork> work;  ///< of `CheckpointOptions::inputs`, or null
  std::vector<SavedInput> inputs;
  std::function<void(const detail::NextInput&)> again;
  ContextScope forward_scope, rerun_scope;
  std::atomic<bool> open{true};  ///< in forward still: a backward inside the function may come before all is saved

  Draws& draws() { return draws_; }
  OpTrace* trace() { return trace_.get(); }
  void run_whole() { early_stop_ = false; }

 private:
  friend class Refilling;

  struct Expected {
    Place* place = nullptr;  ///< null once autograd has let go of it
    std::vector<int64_t> sizes;
    at::ScalarType dtype;
    at::Device device;
    WeakStorage storage;  ///< null without a plain one
    Version version;
    std::string text() const { return tape::describe(dtype, sizes, device); }
  };

  /// What one backward got back and has not read; a tensor read once leaves its shape and a weak pointer.
  struct Filled {
    struct Entry {
      at::Tensor tensor;
      TensorMeta meta;
      WeakStorage storage = no_storage();
      Version version;
    };
    std::vector<Entry> entries;
  };

  /// What a backward inside the function has saved: at hand until that is over. To call the function again for it would run the same
  /// backward again, through nodes that are at work and hold their locks.
  struct SavedInside {
    size_t index;
    at::Tensor tensor;
  };

  static void refuse_overwritten(const Expected& expected, const Version& version);
  const SavedInside* find_saved_inside(size_t index) const;
  at::Tensor take(int32_t task, size_t index);
  void fill(int32_t task, size_t asked);
  void drop_after(int32_t task);
  void drop(int32_t task);
  std::string traces(const OpTrace* second) const;

  Surroundings surroundings_;
  const GuardedValue<bool> thread_early_stop_ = ThreadState::get().early_stop, thread_debug_ = ThreadState::get().debug;
  DeterminismCheck check_;
  bool early_stop_;
  bool debug_;
  Draws draws_;
  std::unique_ptr<OpTrace> trace_;

  std::recursive_mutex calling_;  ///< one at a time; a backward inside the function may reenter. Taken before all other locks of ours
  std::mutex mutex_;  ///< guards what follows
  std::vector<Expected> expected_;
  std::map<int32_t, Filled> filled_;
  const int32_t task_outside_ = torch::autograd::get_current_graph_task_id();
  std::vector<SavedInside> saved_inside_;  ///< by index; let go of at the next save in forward, and at its end
};

/// What autograd keeps instead of a tensor.
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

/// The second call under way: collects what autograd wants to save.
class Refilling final : public Saver {
 public:
  Refilling(Rerun& rerun, int32_t graph_task, size_t last_needed, OpTrace* trace)
      : stops_early(rerun.early_stop_ || rerun.open), rerun_(rerun), last_needed_(last_needed), trace_(trace) {
    stop.graph_task = graph_task;
    hook_depth = rerun.hook_depth;  // those of forward are put in force for the second call
    if (open_) stop.runs_on = [this] { copy_filled(); };
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

  /// After the function has returned or was stopped. @throws CheckpointError
  void finish() {
    if (failure_) std::rethrow_exception(failure_);
    if (rerun_.check_ == DeterminismCheck::kStrict && trace_ && (complete_ || !open_)) {
      const auto& first = *rerun_.trace_;
      for (const auto& what : {first.changed_since(*trace_), first.difference(*trace_, complete_, open_), first.other_values(*trace_)})
        if (!what.empty()) throw_different(what);
    }
    const bool compare_count = rerun_.check_ != DeterminismCheck::kNone && !open_;
    if (!complete_ && (count_ <= last_needed_ || (compare_count && count_ != wanted_.size())))
      throw_different(fmt::format("{} tensors were saved in forward, {} when called again", wanted_.size(), count_));
  }

  /// A function that is in forward still must not be run further than that: it may overwrite what is asked for.
  const bool stops_early;
  Rerun::Filled filled;
  StopRequest stop;

 private:
  // Whether it is what was expected, or nobody minds.
  bool compare(const at::Tensor& tensor, size_t index) {
    const Rerun::Expected* expected;
    bool same_memory;
    {
      std::lock_guard lock(rerun_.mutex_);
      expected = &rerun_.expected_[index];
      same_memory = has_plain_storage(tensor) && expected->storage._unsafe_get_target() == tensor.storage().unsafeGetStorageImpl();
    }
    if (same_memory && expected->version.moved())
      return fail(fmt::format("[refrain::checkpoint] backward must call the function again, but a tensor that it read from outside in "
                       "forward ({}) was changed since: it is {}. Move the change after backward, or read a clone.",
                       expected->text(), expected->version.text()));
    if (rerun_.check_ == DeterminismCheck::kNone || !wanted_[index]) return true;
    if (tensor.scalar_type() == expected->dtype && tensor.sizes() == expected->sizes && tensor.device() == expected->device)
      return true;
    if (trace_) {
      if (const auto what = rerun_.trace_->difference(*trace_, true, true); !what.empty()) return fail(different(what));
    }
    return fail(different(fmt::format("tensor {} of {} saved was {} in forward and {} when called again", index, wanted_.size(),
                               expected->text(), describe(tensor))));
  }

  // The first call has not come to what would overwrite them.
  void copy_filled() {
    const BelowTape below;
    for (auto& entry : filled.entries) {
      if (!entry.tensor.defined() || !has_plain_storage(entry.tensor)) continue;
      TensorMeta meta;
      meta.assign(entry.tensor);
      entry.tensor = meta.build(clone_storage(entry.tensor.storage()));
      entry.version = Version(entry.tensor);
    }
  }

  std::string different(const std::string& what) const {
    return fmt::format(
        "[refrain::checkpoint] the function did something else when backward called it again: {}. It must compute the same "
        "both times from its arguments and captures; source(kReplay) never calls it again.{}",
        what, rerun_.traces(trace_));
  }

  [[noreturn]] void throw_different(const std::string& what) const { throw CheckpointError(different(what)); }

  // Kept as well as thrown, in case the function catches it, or is one through which nothing can be thrown.
  bool fail(const std::string& message) {
    failure_ = std::make_exception_ptr(CheckpointError(message));
    complete_ = true;
    stop.due = false;
    if (can_throw_to(stop.frame)) std::rethrow_exception(failure_);
    return false;
  }

  Rerun& rerun_;
  const bool open_ = rerun_.open;  ///< there will be more in forward than there is now
  const size_t last_needed_;
  OpTrace* const trace_;
  std::vector<bool> wanted_;
  size_t count_ = 0;
  bool complete_ = false;  ///< what backward needs is there, and nothing more is looked at
  std::exception_ptr failure_;
};

/// What the graph of the second call keeps: the tensor itself, for a backward inside the function.
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

std::unique_ptr<torch::autograd::SavedVariableHooks> Refilling::hooks() { return std::make_unique<Collected>(*this); }

/// This thread as the function found it in forward: no region of the tape open, the given saver innermost, guards as then.
class ThreadScope {
 public:
  ThreadScope(const OpenScope& second_call, StopRequest* stop, GuardedValue<bool> early_stop, GuardedValue<bool> debug) {
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
  StopRequest* stop_;
  OffloadingSaver* offloads_;
  bool recomputing_;
  int disabled_;
  GuardedValue<bool> early_stop_, debug_;
  AnnounceScope announced_{true};
};

// A frame of its own, with nothing that catches: exceptions of ours must reach it. Not inlined, nor left by a jump.
[[gnu::noinline]] void call_again(StopRequest& stop, const std::function<void(const detail::NextInput&)>& function,
                                  const detail::NextInput& next_input) {
  stop.frame = __builtin_frame_address(0);
  function(next_input);
  asm volatile("");
}

// --- a rerun region -----------------------------------------------------------------------------------------------------

// Its inputs may hold the graph of the region before, and so on: taken apart by a loop, not by recursion.
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

std::unique_ptr<torch::autograd::SavedVariableHooks> Rerun::hooks() { return std::make_unique<Place>(shared_from_this()); }

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
  TORCH_INTERNAL_ASSERT(tensor.defined(), "[refrain] a second call left out saved tensor ", index);
  return tensor;
}

// Overwritten since autograd saved it, in forward or by the second call: as plain autograd.
void Rerun::refuse_overwritten(const Expected& expected, const Version& version) {
  if (!version.moved()) return;
  throw CheckpointError(fmt::format(
      "[refrain::checkpoint] one of the variables needed for gradient computation has been modified by an inplace "
      "operation: {} is {}. Modify a clone, move the change after backward, or use source(kReplay), which knows the old "
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
      if (!refilling.complete() || refilling.stop.writing) throw;
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

// What this graph task gets back and does not read goes when it ends, or fails.
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
  return fmt::format("\noperators in forward:\n{}operators when called again:\n{}", trace_->text(), second->text());
}

// --- settings -----------------------------------------------------------------------------------------------------------

/// A setting that may be overruled for the process (-1: not), and before that for the thread.
struct Override {
  std::atomic<int> process{-1};

  std::optional<bool> set(std::optional<bool> value) {
    const int before = process.exchange(value ? int{*value} : -1);
    return before < 0 ? std::nullopt : std::optional<bool>(before == 1);
  }
  bool decide(std::optional<bool> thread, bool option) const {
    if (thread) return *thread;
    const int all = process.load(std::memory_order_relaxed);
    return all < 0 ? option : all == 1;
  }
};

Override early_stop_override, debug_override;

}  // namespace

namespace {

using WeakStorages = std::vector<WeakStorage>;

bool contains(const WeakStorages& storages, const c10::StorageImpl* storage) {
  return std::any_of(storages.begin(), storages.end(), [&](const auto& known) { return known._unsafe_get_target() == storage; });
}

void forget(WeakStorages& storages, const c10::StorageImpl* storage) {
  std::erase_if(storages, [&](const auto& known) { return known._unsafe_get_target() == storage; });
}

bool covers_storage(const at::Tensor& tensor) {
  return tensor.is_non_overlapping_and_dense() && tensor.nbytes() == tensor.storage().nbytes();
}

}  // namespace

bool made_by_newest_node(const at::Tensor& tensor) {
  const auto* meta = torch::autograd::impl::get_autograd_meta(tensor);
  return meta && meta->grad_fn_ && meta->grad_fn_->sequence_nr() + 1 == at::sequence_number::peek();
}

void StopRequest::saved(const at::Tensor& tensor, bool argument) {
  if (!has_plain_storage(tensor)) return;
  const auto* storage = tensor.storage().unsafeGetStorageImpl();
  if (contains(fresh, storage)) raw.push_back(tensor.storage().getWeakStorageImpl());
  const auto newest = at::sequence_number::peek();
  if (std::exchange(node, newest) != newest) arguments.clear();
  if (argument) arguments.push_back(tensor.storage().getWeakStorageImpl());
}

void stop_function(StopRequest& request, const OpTraits& op, const torch::jit::Stack& stack) {
  if (torch::autograd::get_current_graph_task_id() != request.graph_task) return;
  const auto* arguments = stack.data() + (stack.size() - op.num_args);
  bool writes_saved = false;
  if (!op.writes.empty() && !(request.fresh.empty() && request.arguments.empty())) {
    for_each_tensor(arguments, op.num_args, [&](const at::Tensor& tensor, size_t position, int32_t) {
      if (!has_plain_storage(tensor) || !write_trait(op, position, arguments)) return;
      const auto* storage = tensor.storage().unsafeGetStorageImpl();
      writes_saved |= contains(request.arguments, storage) || contains(request.raw, storage);
      if (!covers_storage(tensor)) return;
      forget(request.fresh, storage);
      forget(request.raw, storage);
    });
  }
  if (!request.due) return;
  if (!request.arguments.empty() && !writes_saved && may_be_helper(op, stack)) return;
  request.arguments.clear();
  request.writing = writes_saved;
  if (writes_saved || !request.raw.empty()) return;
  if (can_throw_to(request.frame)) {
    request.due = false;
    throw EarlyStop();
  }
  if (const auto runs_on = std::exchange(request.runs_on, nullptr)) runs_on();
}

void note_results(StopRequest& request, const OpTraits& op, const torch::jit::Stack& stack) {
  request.writing = false;
  if (!op.uninitialized) return;
  for_each_tensor(stack.data() + (stack.size() - op.num_returns), op.num_returns, [&](const at::Tensor& tensor, size_t, int32_t) {
    if (has_plain_storage(tensor)) request.fresh.push_back(tensor.storage().getWeakStorageImpl());
  });
}

bool may_be_helper(const OpTraits& op, const torch::jit::Stack& stack) {
  bool any = false, resolves = false;
  for_each_tensor(stack.data() + (stack.size() - op.num_args), op.num_args, [&](const at::Tensor& tensor, size_t, int32_t) {
    any = true;
    resolves |= tensor.is_conj() || tensor.is_neg() || tensor._is_zerotensor();
  });
  return resolves || !any;
}

}  // namespace refrain::tape

namespace refrain {

std::optional<bool> set_early_stop(std::optional<bool> value) { return tape::early_stop_override.set(value); }
std::optional<bool> set_debug(std::optional<bool> value) { return tape::debug_override.set(value); }

EarlyStopGuard::EarlyStopGuard(bool value) { tape::ThreadState::get().early_stop.set(this, value); }
EarlyStopGuard::~EarlyStopGuard() { tape::ThreadState::get().early_stop.end(this); }
DebugGuard::DebugGuard(bool value) { tape::ThreadState::get().debug.set(this, value); }
DebugGuard::~DebugGuard() { tape::ThreadState::get().debug.end(this); }

}  // namespace refrain

namespace refrain::detail {

bool reruns(const CheckpointOptions& options) {
  const auto* saver = tape::ThreadState::get().saver;
  const bool in_rerun = saver && saver->is_rerun();
  if (options.source() == CheckpointSource::kReplay && (options.policy() || !in_rerun)) return false;
  return !tape::plain_call();
}

struct RerunScope::State {
  std::shared_ptr<tape::Rerun> rerun;
  bool entered = false;
  std::shared_ptr<void> forward_scope;
};

RerunScope::RerunScope(const CheckpointOptions& options) : state_(std::make_unique<State>()) {
  if (options.policy())
    throw InvalidArgument(
        "[refrain::checkpoint] a policy chooses among recorded operators, and source(kRerun) records none. Use "
        "source(kReplay) with the policy, or leave the policy out.");
  tape::refuse_unsupported_modes();
  tape::install();
  state_->rerun = std::make_shared<tape::Rerun>(
      options, tape::early_stop_override.decide(tape::ThreadState::get().early_stop.get(), options.early_stop()),
      tape::debug_override.decide(tape::ThreadState::get().debug.get(), options.debug()));
  if (const auto& context_fn = options.context_fn())
    std::tie(state_->rerun->forward_scope, state_->rerun->rerun_scope) = context_fn();
}

void RerunScope::save_input(const at::Tensor& tensor) { state_->rerun->add_input(tensor); }

void RerunScope::run_whole() { state_->rerun->run_whole(); }

void RerunScope::save_generator(const at::Generator& generator) {
  if (generator.defined()) state_->rerun->draws().add_generator(generator);
}

void RerunScope::enter(std::function<void(const NextInput&)> again) {
  auto& rerun = *state_->rerun;
  rerun.again = std::move(again);
  if (rerun.forward_scope) state_->forward_scope = rerun.forward_scope();
  auto* const draws = rerun.draws().any() ? &rerun.draws() : nullptr;
  tape::ThreadState::get().opened({.owner = state_.get(), .saver = &rerun, .trace = rerun.trace(), .draws = draws, .is_rerun = true});
  if (rerun.trace() || draws) tape::set_tape_included(true);
  state_->entered = true;
}

void RerunScope::refuse_uncopyable() {
  throw InvalidArgument(
      "[refrain::checkpoint] source(kRerun) keeps copies of the function and its arguments for the second call, and one of "
      "them cannot be copied. Pass it by std::shared_ptr, or use source(kReplay), which keeps none.");
}

void refuse_base_class() {
  throw InvalidArgument(
      "[refrain::checkpoint] source(kRerun) keeps copies of the function and its arguments for the second call, and one of "
      "them is an object of a derived class behind a reference to its base class, of which a copy would be another object. "
      "Pass it by std::shared_ptr, or use source(kReplay), which keeps none.");
}

RerunScope::~RerunScope() {
  if (!state_->entered) return;
  if (const auto& work = state_->rerun->work) work->forward_ended();
  auto& thread = tape::ThreadState::get();
  thread.closed(state_.get());
  state_->rerun->draws().ended(thread.open);
  tape::leave_dispatch();
  state_->rerun->forward_ended();
}

}  // namespace refrain::detail
