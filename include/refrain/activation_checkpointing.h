#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "refrain/api.h"
#include "refrain/bytes.h"
#include "refrain/checkpoint.h"

/// Selects where checkpoint regions keep their *inputs*, the tensors among the arguments of the checkpointed function:
/// with everything else recomputed, they are the memory that remains. The names are those of DeepSpeed's
/// "activation_checkpointing" section.
///
/// - An input is given to its store before the function runs. From then on nothing that reads it, in this region or
///   another, holds its memory: the bytes are freed with the caller's last handle (write `x = checkpoint(options,
///   block, std::move(x))`, or let `x` be assigned over).
/// - Backward fetches inputs when it recomputes.
/// - One input of several regions is stored once. A view is stored with its whole storage.
/// - Results are equal to the bit, whoever holds the tensor, in both recompute modes.
///
/// Not inputs: parameters and their views, tensors that the function captures rather than is given, what an enclosing
/// region computes, `from_blob` memory, sparse and other tensors without a plain storage. They are kept, or recomputed,
/// as without this.
namespace refrain {

class ProcessGroup;

/// Configures an `ActivationCheckpointing`. Setters chain:
/// `ActivationCheckpointingOptions().cpu_checkpointing(true).profile(true)`.
class REFRAIN_API ActivationCheckpointingOptions {
 public:
  /// Reads a DeepSpeed configuration, or its "activation_checkpointing" section alone.
  /// @param text  JSON; comments as in C are allowed.
  /// @throws FormatError  for text that is not valid JSON, with the place; for an unknown key, with the known ones and the nearest;
  ///                      for a value of another type, with both types.
  [[nodiscard]] static ActivationCheckpointingOptions from_deepspeed_json(std::string_view text);

  /// Keeps 1 / world of each input's bytes (rounded up) on each rank; backward gathers them from all ranks. Default:
  /// false.
  ///
  /// - For ranks that compute the *same* activations, as those of tensor parallelism.
  /// - Every rank runs the same regions forward and backward in the same order, on one thread: a gather is a collective
  ///   call.
  /// - Before each gather, ranks compare number, size and a fingerprint of the input. If they differ, all of them throw
  ///   `DistributedError`, and none waits. If a rank is missing: the same after the group's timeout.
  /// - Inputs under 64 bytes a rank are not partitioned.
  ///
  /// Cost: a copy of the part and a reading of the input in forward, two gathers in backward.
  ActivationCheckpointingOptions& partition_activations(bool value) {
    partition_activations_ = value;
    return *this;
  }
  bool partition_activations() const { return partition_activations_; }

  /// Stores inputs (or this rank's parts) in the region's `CheckpointOptions::offload`: by default host memory, which
  /// on a CPU changes nothing. Default: false.
  ActivationCheckpointingOptions& cpu_checkpointing(bool value) {
    cpu_checkpointing_ = value;
    return *this;
  }
  bool cpu_checkpointing() const { return cpu_checkpointing_; }

  /// Packs inputs (or parts) that stay on their device into one block for each size, so that they lie beside each
  /// other, and what is allocated and freed between them does not split the heap. Default: false.
  ///
  /// - A block is allocated at the first input of its size, with room for `number_checkpoints`.
  /// - A slot is free again when its input is destroyed, with or without a backward.
  /// - When a block is full another is added: `ActivationReport::arenas` has the highest number of slots in use.
  /// - Blocks stay until the `ActivationCheckpointing` and all inputs in them are destroyed.
  ActivationCheckpointingOptions& contiguous_memory_optimization(bool value) {
    contiguous_memory_optimization_ = value;
    return *this;
  }
  bool contiguous_memory_optimization() const { return contiguous_memory_optimization_; }

  /// Sets how many inputs of one size are alive at once; as a rule the number of checkpointed layers. Default: 0, which
  /// is none.
  /// @param value  at least 1 with `contiguous_memory_optimization`.
  ActivationCheckpointingOptions& number_checkpoints(int64_t value) {
    number_checkpoints_ = value;
    return *this;
  }
  int64_t number_checkpoints() const { return number_checkpoints_; }

  /// Waits for the accelerator at both ends of each region, in forward and in backward; no effect on a CPU. Default:
  /// false.
  ActivationCheckpointingOptions& synchronize_checkpoint_boundary(bool value) {
    synchronize_checkpoint_boundary_ = value;
    return *this;
  }
  bool synchronize_checkpoint_boundary() const { return synchronize_checkpoint_boundary_; }

  /// Measures the time of regions and counts their bytes, for `ActivationCheckpointing::report`. On an accelerator
  /// without `synchronize_checkpoint_boundary` the times are those of issuing the work. Default: false.
  ActivationCheckpointingOptions& profile(bool value) {
    profile_ = value;
    return *this;
  }
  bool profile() const { return profile_; }

 private:
  int64_t number_checkpoints_ = 0;
  bool partition_activations_ = false;
  bool cpu_checkpointing_ = false;
  bool contiguous_memory_optimization_ = false;
  bool synchronize_checkpoint_boundary_ = false;
  bool profile_ = false;
};

/// Sums up all regions that were opened under one `ModuleScope` path.
struct RegionProfile {
  std::string scope;  ///< "encoder.layer1", or ""
  int64_t calls = 0;
  int64_t recomputes = 0;   ///< replays, or second calls of the function
  double forward_ms = 0;    ///< time of the calls, storing inputs included
  double recompute_ms = 0;  ///< time of the recomputes, fetching inputs included, the rest of backward not
  Bytes input_bytes = 0;    ///< whole storages
  Bytes kept_bytes = 0;     ///< of these, what had to stay on the device; 0 for an input that is in a store already
};

/// Counts the slots for one size of input under `contiguous_memory_optimization`.
struct ArenaProfile {
  Bytes slot_bytes = 0;
  int64_t slots = 0;  ///< allocated; more than `number_checkpoints` if that was too few
  int64_t in_use = 0;
  int64_t most_used = 0;  ///< what `number_checkpoints` should be
};

/// Holds sums since construction or `reset_report`.
struct REFRAIN_API ActivationReport {
  std::vector<RegionProfile> regions;  ///< by first call; empty without `profile`
  std::vector<ArenaProfile> arenas;    ///< by size

  /// Returns a table of the regions with a line for their sum, and a line for each arena. Ends in a line break.
  [[nodiscard]] std::string text() const;
  /// Returns the report as JSON:
  ///
  ///     {"regions": [{"scope", "calls", "recomputes", "forward_ms", "recompute_ms", "input_bytes", "kept_bytes"}],
  ///      "arenas": [{"slot_bytes", "slots", "in_use", "most_used"}]}
  [[nodiscard]] std::string json() const;
};

/// Puts options in force. Make one for a model, and give each `checkpoint` call, wrapper or mark its `options`.
///
/// May be destroyed before the backward of regions that used it. Copies share stores and report.
/// Threads: any; with `partition_activations` one at a time.
/// Source: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", SC 2020 (P_a,
/// P_a+cpu, MD); on values of the tape, so that inputs shared by regions are stored once and no `reset` is needed.
class REFRAIN_API ActivationCheckpointing {
 public:
  /// Puts `options` in force on one rank.
  /// @param options  without `partition_activations`, which needs a group.
  /// @throws InvalidArgument  with `partition_activations`; with `contiguous_memory_optimization` and
  ///                          `number_checkpoints` below 1.
  explicit ActivationCheckpointing(const ActivationCheckpointingOptions& options);

  /// Puts `options` in force on the ranks of `group`.
  /// @param options  any.
  /// @param group    ranks that compute the same activations. A group of one partitions nothing.
  /// @throws InvalidArgument  with `contiguous_memory_optimization` and `number_checkpoints` below 1.
  ActivationCheckpointing(const ActivationCheckpointingOptions& options, const ProcessGroup& group);

  /// Adds these options for a region's inputs to `base`.
  /// @param base  all other options of the region.
  /// @return  `base`, with `CheckpointOptions::input_storage` set.
  [[nodiscard]] CheckpointOptions options(CheckpointOptions base = {}) const;

  /// Returns the sums since construction or `reset_report`.
  [[nodiscard]] ActivationReport report() const;

  /// Resets the report: regions are forgotten, `most_used` starts again from what is in use.
  void reset_report();

 private:
  class Inputs;
  std::shared_ptr<Inputs> inputs_;
};

}  // namespace refrain
