#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "refrain/bytes.h"
#include "refrain/checkpoint.h"

/// What a checkpoint region does with its *inputs*, the tensors among the arguments of the checkpointed function: with
/// everything else computed again, they are the memory that is left. The names are those of DeepSpeed's
/// "activation_checkpointing" section.
///
/// An input is given to its store before the function runs, and from then on nothing that reads it, in this region or
/// another, holds its memory: the bytes go with the caller's last handle (write `x = checkpoint(options, block,
/// std::move(x))`, or let `x` be assigned over). Backward fetches them when it replays. One input of several regions is
/// stored once. Results are equal to the bit, whoever holds the tensor, in both sources.
///
/// No input: parameters and their views, tensors that the function captures rather than is given, what an enclosing
/// region computes, `from_blob` memory, sparse and other tensors without a plain storage. They are kept, or computed
/// again, as without this. A view is stored with its whole storage.
namespace refrain {

class ProcessGroup;

/// Setters chain: `ActivationCheckpointingOptions().cpu_checkpointing(true).profile(true)`.
class ActivationCheckpointingOptions {
 public:
  /// Reads a DeepSpeed configuration, or its "activation_checkpointing" section alone. Comments as in C are let pass.
  /// @throws FormatError  that says where, for what is no JSON; for an unknown key, with the known ones and the
  ///                      nearest; for a value of another type, with both.
  static ActivationCheckpointingOptions from_deepspeed_json(std::string_view text);

  /// Of each input a rank keeps 1 / world of the bytes (rounded up); backward gathers them from all ranks. Default:
  /// false.
  ///
  /// For ranks that compute the *same* activations, as those of tensor parallelism. Every rank runs the same regions
  /// forward and backward in the same order, on one thread: a gather is a collective call. Before each, ranks compare
  /// number, size and a fingerprint of the input; if they differ, all of them throw `DistributedError`, and none waits.
  /// A rank that does not come: the same after the group's timeout. Inputs under 64 bytes a rank are not partitioned.
  /// Cost: a copy of the part and a reading of the input in forward, two gathers in backward.
  ActivationCheckpointingOptions& partition_activations(bool value) {
    partition_activations_ = value;
    return *this;
  }
  bool partition_activations() const { return partition_activations_; }

  /// Inputs (or this rank's parts) go to the region's `CheckpointOptions::offload`: by default host memory, which on a
  /// CPU changes nothing. Default: false.
  ActivationCheckpointingOptions& cpu_checkpointing(bool value) {
    cpu_checkpointing_ = value;
    return *this;
  }
  bool cpu_checkpointing() const { return cpu_checkpointing_; }

  /// Inputs (or parts) that stay on their device are packed into one block for each size, allocated at the first of
  /// that size with room for `number_checkpoints`; so they lie beside each other, and what comes and goes between them
  /// does not split the heap. A slot is free again when its input dies, with or without a backward. When a block is
  /// full another is added: `ActivationReport::arenas` says how many slots were used at most. Blocks stay until this
  /// and all inputs in them are gone. Default: false.
  ActivationCheckpointingOptions& contiguous_memory_optimization(bool value) {
    contiguous_memory_optimization_ = value;
    return *this;
  }
  bool contiguous_memory_optimization() const { return contiguous_memory_optimization_; }

  /// Inputs of one size alive at once; as a rule the number of checkpointed layers. Default: 0, which is none.
  ActivationCheckpointingOptions& number_checkpoints(int64_t value) {
    number_checkpoints_ = value;
    return *this;
  }
  int64_t number_checkpoints() const { return number_checkpoints_; }

  /// Waits for the accelerator at both ends of each region, in forward and in backward; nothing on a CPU. Default:
  /// false.
  ActivationCheckpointingOptions& synchronize_checkpoint_boundary(bool value) {
    synchronize_checkpoint_boundary_ = value;
    return *this;
  }
  bool synchronize_checkpoint_boundary() const { return synchronize_checkpoint_boundary_; }

  /// Times regions and counts their bytes for `ActivationCheckpointing::report`. On an accelerator without
  /// `synchronize_checkpoint_boundary` the times are those of issuing the work. Default: false.
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

/// All regions that were opened under one `ModuleScope` path.
struct RegionProfile {
  std::string scope;         ///< "encoder.layer1", or ""
  int64_t calls = 0;
  int64_t recomputes = 0;    ///< replays, or second calls of the function
  double forward_ms = 0;     ///< of the calls, storing inputs included
  double recompute_ms = 0;   ///< fetching inputs included, the rest of backward not
  Bytes input_bytes = 0;     ///< whole storages
  Bytes kept_bytes = 0;      ///< of these, what had to stay on the device; 0 for an input that is in a store already
};

/// A size of input under `contiguous_memory_optimization`.
struct ArenaProfile {
  Bytes slot_bytes = 0;
  int64_t slots = 0;      ///< allocated; more than `number_checkpoints` if that was too few
  int64_t in_use = 0;
  int64_t most_used = 0;  ///< what `number_checkpoints` should be
};

/// Sums since construction or `reset_report`.
struct ActivationReport {
  std::vector<RegionProfile> regions;  ///< by first call; empty without `profile`
  std::vector<ArenaProfile> arenas;    ///< by size

  /// A table of the regions with a line for their sum, and a line for each arena. Ends in a line break.
  std::string text() const;
  /// {"regions": [{"scope", "calls", "recomputes", "forward_ms", "recompute_ms", "input_bytes", "kept_bytes"}],
  ///  "arenas": [{"slot_bytes", "slots", "in_use", "most_used"}]}
  std::string json() const;
};

/// Options in force. Make one for a model, and give each `checkpoint` call, wrapper or mark its `options`.
///
/// May be destroyed before the backward of regions that used it. Copies share stores and report.
/// Threads: any; with `partition_activations` one at a time.
/// Source: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", SC 2020 (P_a,
/// P_a+cpu, MD); on values of the tape, so that inputs shared by regions are stored once and no `reset` is needed.
class ActivationCheckpointing {
 public:
  /// @throws InvalidArgument  with `partition_activations`, which needs a group; with `contiguous_memory_optimization`
  ///                          and `number_checkpoints` below 1.
  explicit ActivationCheckpointing(const ActivationCheckpointingOptions& options);
  /// @param group  ranks that compute the same activations. A group of one partitions nothing.
  ActivationCheckpointing(const ActivationCheckpointingOptions& options, const ProcessGroup& group);

  /// `base`, with these options for the region's inputs.
  CheckpointOptions options(CheckpointOptions base = {}) const;

  ActivationReport report() const;
  /// Regions are forgotten; `most_used` starts again from what is in use.
  void reset_report();

 private:
  class Inputs;
  std::shared_ptr<Inputs> inputs_;
};

}  // namespace refrain
