#include "refrain/activation_checkpointing.h"

#include <ATen/DeviceAccelerator.h>

#include <chrono>
#include <mutex>
#include <optional>
#include <unordered_map>

#include "offload/region_inputs.h"
#include "refrain/distributed.h"
#include "refrain/error.h"
#include "refrain/selective.h"
#include "train/input_arena.h"
#include "train/partitioned_inputs.h"

namespace refrain {
namespace {

void wait_for_accelerator() {
  if (!at::accelerator::getAccelerator() || at::accelerator::deviceCount() == 0) return;
  at::accelerator::synchronizeDevice(at::accelerator::getDeviceIndex());
}

class Stopwatch {
 public:
  void start() { start_ = std::chrono::steady_clock::now(); }
  double ms() const {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_;
};

}  // namespace

class ActivationCheckpointing::Inputs final : public RegionInputs, public std::enable_shared_from_this<Inputs> {
 public:
  Inputs(const ActivationCheckpointingOptions& options, const ProcessGroup* group) : options_(options) {
    if (options.contiguous_memory_optimization()) {
      if (options.number_checkpoints() < 1)
        throw InvalidArgument(
            "[refrain::ActivationCheckpointing] contiguous_memory_optimization with number_checkpoints " +
            std::to_string(options.number_checkpoints()) +
            ", expected how many inputs of one size are alive at once: as a rule the number of checkpointed layers.");
      arena_.emplace(options.number_checkpoints());
    }
    if (options.partition_activations()) {
      if (!group)
        throw InvalidArgument(
            "[refrain::ActivationCheckpointing] partition_activations without a process group. Pass the ranks that "
            "compute the same activations: ActivationCheckpointing(options, group).");
      partition_.emplace(*group);
    }
  }

  std::shared_ptr<tape::RegionWork> open(const CheckpointOptions& options) override {
    return std::make_shared<Work>(shared_from_this(), options.offload() ? options.offload() : tape::offload_store());
  }

  ActivationReport report() const {
    ActivationReport report;
    if (arena_) report.arenas = arena_->profile();
    std::lock_guard lock(mutex_);
    report.regions = profiles_;
    return report;
  }

  void reset_report() {
    if (arena_) arena_->reset_profile();
    std::lock_guard lock(mutex_);
    profiles_.clear();
    by_scope_.clear();
  }

 private:
  /// One region.
  class Work final : public tape::RegionWork {
   public:
    Work(std::shared_ptr<Inputs> inputs, std::shared_ptr<tape::OffloadStore> cpu)
        : inputs_(std::move(inputs)), cpu_(std::move(cpu)) {
      if (profiles()) scope_ = module_scope();
      wait();
      forward_.start();
    }

    void add_input(size_t nbytes) override {
      note([&](RegionProfile& region) { region.input_bytes += static_cast<Bytes>(nbytes); });
    }

    std::shared_ptr<tape::Offloaded> store(const c10::Storage& bytes) override {
      auto stored = inputs_->store(bytes, *cpu_);
      const auto kept = stored ? stored->bytes_on_device() : bytes.nbytes();
      note([&](RegionProfile& region) { region.kept_bytes += static_cast<Bytes>(kept); });
      return stored;
    }

    void forward_ended() noexcept override {
      wait_quietly();
      note([&](RegionProfile& region) {
        ++region.calls;
        region.forward_ms += forward_.ms();
      });
    }

    void recompute_started() override {
      wait();
      recompute_.start();
    }

    void recompute_ended() noexcept override {
      wait_quietly();
      note([&](RegionProfile& region) {
        ++region.recomputes;
        region.recompute_ms += recompute_.ms();
      });
    }

   private:
    bool profiles() const { return inputs_->options_.profile(); }

    void wait() const {
      if (inputs_->options_.synchronize_checkpoint_boundary()) wait_for_accelerator();
    }

    // An accelerator that failed reports that to the next call too.
    void wait_quietly() const noexcept {
      try {
        wait();
      } catch (...) {
      }
    }

    template <typename Add>
    void note(const Add& add) {
      if (profiles()) inputs_->note(scope_, add);
    }

    const std::shared_ptr<Inputs> inputs_;
    const std::shared_ptr<tape::OffloadStore> cpu_;
    std::string scope_;
    Stopwatch forward_, recompute_;
  };

  std::shared_ptr<tape::Offloaded> store(const c10::Storage& bytes, tape::OffloadStore& cpu) {
    const auto whole_or_part = [&](const c10::Storage& piece) -> std::shared_ptr<tape::Offloaded> {
      if (options_.cpu_checkpointing())
        if (auto stored = cpu.store(piece)) return stored;
      return arena_ ? arena_->store(piece) : nullptr;
    };
    if (partition_)
      if (auto stored = partition_->store(bytes, whole_or_part)) return stored;
    return whole_or_part(bytes);
  }

  template <typename Add>
  void note(const std::string& scope, const Add& add) {
    std::lock_guard lock(mutex_);
    const auto [found, is_new] = by_scope_.emplace(scope, profiles_.size());
    if (is_new) profiles_.emplace_back().scope = scope;
    add(profiles_[found->second]);
  }

  const ActivationCheckpointingOptions options_;
  std::optional<InputArena> arena_;
  std::optional<PartitionedInputs> partition_;
  mutable std::mutex mutex_;  ///< guards what follows
  std::vector<RegionProfile> profiles_;
  std::unordered_map<std::string, size_t> by_scope_;  ///< place in `profiles_`
};

ActivationCheckpointing::ActivationCheckpointing(const ActivationCheckpointingOptions& options)
    : inputs_(std::make_shared<Inputs>(options, nullptr)) {}

ActivationCheckpointing::ActivationCheckpointing(const ActivationCheckpointingOptions& options,
                                                 const ProcessGroup& group)
    : inputs_(std::make_shared<Inputs>(options, &group)) {}

CheckpointOptions ActivationCheckpointing::options(CheckpointOptions base) const { return base.input_storage(inputs_); }

ActivationReport ActivationCheckpointing::report() const { return inputs_->report(); }

void ActivationCheckpointing::reset_report() { inputs_->reset_report(); }

CheckpointOptions& CheckpointOptions::offload_to_cpu(bool value) {
  static const ActivationCheckpointing to_cpu(ActivationCheckpointingOptions().cpu_checkpointing(true));
  return input_storage(value ? to_cpu.options().input_storage() : nullptr);
}

}  // namespace refrain
