#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "refrain/api.h"
#include "refrain/bytes.h"
#include "refrain/torch_error.h"

/// Offload: forward copies the bytes that backward will need to a store and frees them, and backward fetches them;
/// nothing is recomputed.
///
/// An `OffloadStore` says where they go. Give it
/// - to regions with `CheckpointOptions::offload`, where policies that answer `CheckpointPolicy::kOffload` use it
///   (`offload_compute_intensive`, `offload_ops`, `offload_only_these_names`, `offload_larger_than` in
///   refrain/selective.h);
/// - to all regions that name none with `set_offload_store`;
/// - to code outside of regions with `OffloadScope`.
///
/// Parameters are never offloaded. Gradients are those of the baseline, to the bit.
namespace refrain {

namespace offload {
class Store;
}
namespace tape {
class OffloadingSaver;
}

/// Where an `OffloadStore` puts bytes.
enum class OffloadTo {
  kHost,  ///< host memory, for bytes of a device; those in host memory already stay where they are
  kDisk,  ///< a scratch file
};

/// How an `OffloadStore` works. Setters chain: `OffloadOptions().store(OffloadTo::kDisk).directory("/scratch")`.
class OffloadOptions {
 public:
  /// Sets where the bytes go. Default: kHost.
  OffloadOptions& store(OffloadTo value) {
    store_ = value;
    return *this;
  }
  OffloadTo store() const { return store_; }

  /// Sets the folder of the scratch file, on the fastest disk there is. Default: the system's folder for temporary
  /// files. Only for kDisk.
  ///
  /// The file has no name: the system frees its space when the process ends, however it ends, and no other process can
  /// come across it. `df` shows it, `ls` does not.
  OffloadOptions& directory(std::filesystem::path value) {
    directory_ = std::move(value);
    return *this;
  }
  const std::filesystem::path& directory() const { return directory_; }

  /// Sets how many bytes to read ahead of backward. Default: 32 MiB. Only for kDisk.
  ///
  /// - They are read in the order in which the last step asked for them (the first step: last stored, first read).
  /// - They are in memory until backward takes them, so they may add as much to the peak.
  /// - A value that is larger is read ahead alone.
  /// @param value  bytes >= 0; 0 reads nothing ahead.
  OffloadOptions& prefetch(Bytes value) {
    prefetch_ = value;
    return *this;
  }
  Bytes prefetch() const { return prefetch_; }

  /// Keeps smaller values in memory. Default: 64 KiB.
  /// @param value  bytes >= 0.
  OffloadOptions& min_bytes(Bytes value) {
    min_bytes_ = value;
    return *this;
  }
  Bytes min_bytes() const { return min_bytes_; }

  /// Bounds the bytes in memory that wait to be written: forward waits rather than exceed it. Default: 64 MiB. Only for
  /// kDisk.
  ///
  /// A value that is larger is written while forward waits.
  /// @param value  bytes >= 0; with 0 forward waits for all values.
  OffloadOptions& max_in_flight(Bytes value) {
    max_in_flight_ = value;
    return *this;
  }
  Bytes max_in_flight() const { return max_in_flight_; }

  /// Passes bytes of a device through page-locked host memory, so that copies do not stop it. Default: true.
  OffloadOptions& pin_memory(bool value) {
    pin_memory_ = value;
    return *this;
  }
  bool pin_memory() const { return pin_memory_; }

  /// Compresses by zstd. Default: 0. Only for kDisk.
  ///
  /// Floating-point activations hardly shrink, those after ReLU do.
  /// @param level  1 to 19, negative ones faster still; 0 does not compress.
  OffloadOptions& compress(int level) {
    compress_ = level;
    return *this;
  }
  int compress() const { return compress_; }

  /// Bounds the size of the file. What does not fit is kept in memory. Default: the disk's. Only for kDisk.
  /// @param value  bytes >= 0.
  OffloadOptions& capacity(Bytes value) {
    capacity_ = value;
    return *this;
  }
  Bytes capacity() const { return capacity_; }

  /// Makes a value that finds no room an error (`OffloadError`) of the forward that stores it, and a failed write one
  /// of the next store or `flush`. Default: false. Only for kDisk.
  ///
  /// With `false` the value is kept in memory and counted as refused, and `OffloadStats::problem` says why (LibTorch's
  /// warning handler too, once).
  OffloadOptions& strict(bool value) {
    strict_ = value;
    return *this;
  }
  bool strict() const { return strict_; }

 private:
  OffloadTo store_ = OffloadTo::kHost;
  std::filesystem::path directory_;
  Bytes prefetch_ = 32_MiB;
  Bytes min_bytes_ = 64_KiB;
  Bytes max_in_flight_ = 64_MiB;
  Bytes capacity_ = INT64_MAX;
  int compress_ = 0;
  bool pin_memory_ = true;
  bool strict_ = false;
};

/// Counts what an `OffloadStore` did.
///
/// Sums since construction or `reset_stats`, but for the last four, which are the state now.
struct OffloadStats {
  int64_t values = 0;  ///< taken
  Bytes value_bytes = 0;
  /// No room, or the write failed: kept in memory. Those under `min_bytes` are not counted.
  int64_t refused = 0;
  Bytes refused_bytes = 0;
  Bytes written_bytes = 0;  ///< after compression; values that are freed before their turn are never written
  Bytes read_bytes = 0;
  int64_t fetches = 0;       ///< times that backward asked for a value
  int64_t prefetched = 0;    ///< of these, read ahead by then or in time
  int64_t store_stalls = 0;  ///< times that forward waited for `max_in_flight`
  double store_stall_ms = 0;
  int64_t fetch_stalls = 0;  ///< times that backward waited for bytes from the disk
  double fetch_stall_ms = 0;
  Bytes in_flight_bytes = 0;  ///< in memory, to be written
  Bytes stored_bytes = 0;     ///< in the file (kHost: in host memory)
  Bytes file_bytes = 0;       ///< size of the file: it never shrinks
  std::string problem;        ///< the last refusal or failed read; "" for none
};

/// A place for bytes. Copies are the same store; it lives as long as one of them, or something in it, does.
/// Threads: any.
class REFRAIN_API OffloadStore {
 public:
  /// Opens a store.
  /// @throws InvalidArgument  for a number of bytes below 0, a level that zstd does not have, `compress` in a build
  ///                          without zstd, or a `directory` in which no file can be made.
  /// Cost: kDisk starts two threads.
  explicit OffloadStore(const OffloadOptions& options = {});
  explicit OffloadStore(std::shared_ptr<offload::Store> store) : store_(std::move(store)) {}

  /// Waits until nothing is in flight: memory is then what it will be until backward.
  /// @throws OffloadError  with `strict`, if a write failed.
  void flush() const;

  [[nodiscard]] OffloadStats stats() const;
  void reset_stats() const;

  const std::shared_ptr<offload::Store>& get() const { return store_; }

 private:
  std::shared_ptr<offload::Store> store_;
};

/// Sets the store of regions that name none, and of `ActivationCheckpointingOptions::cpu_checkpointing`. Default: kHost
/// with a `min_bytes` of 0.
///
/// For what is stored from now on. Threads: any.
REFRAIN_API void set_offload_store(const OffloadStore& store);

/// Sets that store back to the default. Threads: any.
REFRAIN_API void reset_offload_store();

/// Stores what autograd saves on this thread outside of `checkpoint` regions while alive, and fetches it when backward
/// reads it. The counterpart of `torch.autograd.graph.save_on_cpu`.
///
/// - A storage that several operators save is stored once; views fetch it whole.
/// - Kept in memory as they are: parameters and their views, `from_blob` memory, sparse and other tensors without a
///   plain storage, and what the store declines.
/// - What an operator was given is stored when that has returned. The bytes are freed with the last handle of yours.
/// - A saved tensor that is changed in place afterwards: if it is in the store, backward gets its old bytes, where
///   autograd in the baseline refuses; else the same error (`CheckpointError`).
/// - Changed by an operator that bumps no version (`data()`, a fused optimizer) or through a pointer that is asked for
///   afterwards, it is kept in memory from then on, and backward gets the new bytes, as in the baseline.
/// - A change through a pointer kept from before is seen only as long as the tensor lives.
/// - Does nothing inside a region, whose policy decides, nor with gradients disabled.
/// - Nests: the innermost store is used. Scopes may end in any order.
/// Threads: its own; backward may run on any, before or after the scope ends.
class REFRAIN_API OffloadScope {
 public:
  [[nodiscard]] explicit OffloadScope(const OffloadStore& store);
  ~OffloadScope();
  OffloadScope(const OffloadScope&) = delete;
  OffloadScope& operator=(const OffloadScope&) = delete;

 private:
  std::unique_ptr<tape::OffloadingSaver> saver_;
};

}  // namespace refrain
