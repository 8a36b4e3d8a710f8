#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/saved_variable_hooks.h>

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "intercept/surroundings.h"
#include "intercept/version.h"
#include "offload/region_inputs.h"
#include "refrain/checkpoint.h"
#include "rerun/op_trace.h"
#include "rerun/saved_input.h"
#include "tape/draws.h"
#include "tape/region_work.h"
#include "tape/saver.h"
#include "tape/thread_state.h"

namespace refrain::tape {

class Place;
class Refilling;

using WeakStorage = c10::weak_intrusive_ptr<c10::StorageImpl>;

/// A `checkpoint` call with recompute_mode(kRerunFunction). Owned by its scope and by the places that autograd holds.
class Rerun final : public Saver, public std::enable_shared_from_this<Rerun> {
 public:
  explicit Rerun(const CheckpointOptions& options, bool early_stop, bool debug)
      : work(options.input_storage() ? options.input_storage()->open(options) : nullptr),
        check_(options.determinism_check()),
        early_stop_(early_stop),
        debug_(debug),
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

  const std::shared_ptr<RegionWork> work;  ///< of `CheckpointOptions::input_storage`, or null
  std::vector<SavedInput> inputs;
  std::function<void(const detail::NextInput&)> again;
  ContextScope forward_scope, rerun_scope;
  std::atomic<bool> open{true};  ///< in forward still: a backward inside the function may run before all is saved

  Draws& draws() { return draws_; }
  OpTrace* trace() { return trace_.get(); }
  void run_whole() { early_stop_ = false; }

 private:
  friend class Refilling;

  struct Expected {
    Place* place = nullptr;  ///< null once autograd has released it
    std::vector<int64_t> sizes;
    at::ScalarType dtype;
    at::Device device;
    WeakStorage storage;  ///< null if it has no plain storage
    Version version;
    std::string text() const { return tape::describe(dtype, sizes, device); }
  };

  /// Recomputed tensors that one backward has not read; of a tensor read once, its shape and a weak pointer.
  struct Filled {
    struct Entry {
      at::Tensor tensor;
      TensorMeta meta;
      WeakStorage storage = WeakStorage(c10::intrusive_ptr<c10::StorageImpl>());
      Version version;
    };
    std::vector<Entry> entries;
  };

  /// A tensor saved by a backward inside the function, kept until that is over. To rerun the function for it would run
  /// the same backward a second time, through nodes that are at work and hold their locks.
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

  std::recursive_mutex
      calling_;  ///< one at a time; a backward inside the function may reenter. Taken before all other locks of ours
  std::mutex mutex_;  ///< guards what follows
  std::vector<Expected> expected_;
  std::map<int32_t, Filled> filled_;
  const int32_t task_outside_ = torch::autograd::get_current_graph_task_id();
  std::vector<SavedInside> saved_inside_;  ///< by index; released at the next save in forward, and at its end
};

}  // namespace refrain::tape
