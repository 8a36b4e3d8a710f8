#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/intrusive_ptr.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "refrain/api.h"
#include "refrain/torch_error.h"

namespace c10d {
class ProcessGroup;
}

/// Processes that train together: who they are, how they find each other, and what they say when one is missing.
namespace refrain {

/// A group of processes, as seen by one of them. Copies share the group; its connections end with the last of them.
///
/// - Every rank calls the same collectives in the same order.
/// - Tensors are dense, of the same sizes and dtype on all ranks.
/// @throws DistributedError  from each collective, if a rank exited or timed out (the group's timeout): names the call,
///                           this rank and what LibTorch saw. The group is of no use after that.
/// Threads: one at a time.
class REFRAIN_API ProcessGroup {
 public:
  /// Wraps a group of LibTorch's that you made, with whatever backend.
  /// @throws InvalidArgument  if it is null.
  explicit ProcessGroup(const c10::intrusive_ptr<c10d::ProcessGroup>& group);

  [[nodiscard]] int64_t rank() const;  ///< 0 to size() - 1
  [[nodiscard]] int64_t size() const;  ///< number of ranks

  /// Returns when every rank has called it.
  void barrier() const;

  /// Overwrites `tensor` with the sum over ranks.
  ///
  /// The order of the additions depends on the backend and on where in the tensor an element lies, so that for three or
  /// more ranks the last bits of two layouts may differ.
  void all_reduce(at::Tensor tensor) const;

  /// Overwrites `tensor` with that of one rank.
  /// @param root  the rank, 0 to size() - 1.
  /// @throws InvalidArgument  if there is no rank `root`.
  void broadcast(at::Tensor tensor, int64_t root = 0) const;

  /// Collects a tensor from each rank.
  /// @return the tensor of each rank, by rank.
  [[nodiscard]] std::vector<at::Tensor> all_gather(const at::Tensor& tensor) const;

  /// Overwrites `whole` with the parts of the ranks, one after the other.
  /// @param whole  contiguous, of size() times the elements of `part`.
  void all_gather_into(at::Tensor whole, at::Tensor part) const;

  /// Collects a text from each rank; any lengths.
  /// @return the text of each rank, by rank.
  [[nodiscard]] std::vector<std::string> all_gather(const std::string& text) const;

  /// Gives LibTorch's group, for what is not here: include <torch/csrc/distributed/c10d/ProcessGroup.hpp>.
  const c10::intrusive_ptr<c10d::ProcessGroup>& c10d() const { return *group_; }

 private:
  std::shared_ptr<const c10::intrusive_ptr<c10d::ProcessGroup>> group_;
};

/// Which process this is and where rank 0 listens. Setters chain.
class REFRAIN_API ProcessGroupOptions {
 public:
  /// Reads what the launcher of this process set in its environment. The first of these that is set counts:
  ///
  ///     RANK, WORLD_SIZE, LOCAL_RANK                        `refrain launch`, torchrun
  ///     OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK            mpirun of Open MPI
  ///     PMI_RANK, PMI_SIZE, MPI_LOCALRANKID                 mpiexec of MPICH and Intel MPI
  ///
  /// - If none is set: a world of one process.
  /// - With them MASTER_ADDR and MASTER_PORT, by default 127.0.0.1 and 29500; an mpirun over several machines needs
  ///   MASTER_ADDR.
  /// @throws InvalidArgument  naming the variable, its value and what was expected.
  [[nodiscard]] static ProcessGroupOptions from_environment();

  /// Sets which of the ranks this process is. Default: 0.
  /// @param value  0 to `world_size` - 1.
  ProcessGroupOptions& rank(int64_t value) {
    rank_ = value;
    return *this;
  }
  int64_t rank() const { return rank_; }

  /// Sets the number of ranks. Default: 1.
  /// @param value  >= 1.
  ProcessGroupOptions& world_size(int64_t value) {
    world_size_ = value;
    return *this;
  }
  int64_t world_size() const { return world_size_; }

  /// Sets the place among the ranks of this machine, to choose a device by. Default: 0.
  ProcessGroupOptions& local_rank(int64_t value) {
    local_rank_ = value;
    return *this;
  }
  int64_t local_rank() const { return local_rank_; }

  /// Sets where rank 0 listens and the others look for it. Default: 127.0.0.1.
  /// @param value  an address; not empty.
  ProcessGroupOptions& master_addr(std::string value) {
    master_addr_ = std::move(value);
    return *this;
  }
  const std::string& master_addr() const { return master_addr_; }

  /// Sets the port at which rank 0 listens. Default: 29500.
  /// @param value  1 to 65535.
  ProcessGroupOptions& master_port(int64_t value) {
    master_port_ = value;
    return *this;
  }
  int64_t master_port() const { return master_port_; }

  /// Says whether the launcher hosts the TCPStore, so that rank 0 does not. Default: false; torchrun's agent does.
  ProcessGroupOptions& launcher_hosts_store(bool value) {
    launcher_hosts_store_ = value;
    return *this;
  }
  bool launcher_hosts_store() const { return launcher_hosts_store_; }

  /// Sets how long to wait until all ranks have joined. Default: 5 minutes.
  /// @param value  > 0.
  ProcessGroupOptions& rendezvous_timeout(std::chrono::milliseconds value) {
    rendezvous_timeout_ = value;
    return *this;
  }
  std::chrono::milliseconds rendezvous_timeout() const { return rendezvous_timeout_; }

  /// Sets how long the others wait for a rank in a collective, so also how long rank 0 may save or evaluate alone.
  /// Default: 30 minutes. A rank that exited is noticed at once.
  /// @param value  > 0.
  ProcessGroupOptions& timeout(std::chrono::milliseconds value) {
    timeout_ = value;
    return *this;
  }
  std::chrono::milliseconds timeout() const { return timeout_; }

 private:
  int64_t rank_ = 0;
  int64_t world_size_ = 1;
  int64_t local_rank_ = 0;
  int64_t master_port_ = 29500;
  std::string master_addr_ = "127.0.0.1";
  bool launcher_hosts_store_ = false;
  std::chrono::milliseconds rendezvous_timeout_ = std::chrono::minutes(5);
  std::chrono::milliseconds timeout_ = std::chrono::minutes(30);
};

/// Blocks until all ranks have joined (rendezvous), and returns the process group.
///
/// - Over Gloo, and NCCL for tensors on CUDA devices where the library was built against a LibTorch with CUDA and found
///   nccl.h. Choose the device by `local_rank` before.
/// - Gloo's connections go over the interface that GLOO_SOCKET_IFNAME names; else over loopback if rank 0 listens
///   there, and over that of the host's name if it does not.
/// - A second call makes a second group; all ranks make it.
/// - From the first call on the process ignores SIGPIPE, unless it has a handler of its own: Gloo would end it by that
///   when another rank exits.
/// @return the group of all ranks.
/// @throws InvalidArgument   if an option is out of range.
/// @throws DistributedError  if not all ranks joined in time (names those missing), two say they are the same rank,
///                           they disagree on the size of the world, or the address cannot be used.
REFRAIN_API ProcessGroup
init_process_group(const ProcessGroupOptions& options = ProcessGroupOptions::from_environment());

}  // namespace refrain
