#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "refrain/error.h"

namespace c10d {
class ProcessGroup;
}

/// Processes that train together: who they are, how they find each other, and what they say when one is missing.
namespace refrain {

/// One process of a group. Copies share the group; its connections end with the last of them.
///
/// Every rank calls the same collectives in the same order. Tensors are dense, of the same sizes and dtype on all
/// ranks.
/// @throws DistributedError  from each of them, if a rank has ended or is later than the group's timeout: names the
///                           call, this rank and what LibTorch saw. The group is of no use after that.
/// Threads: one at a time.
class ProcessGroup {
 public:
  /// Wraps a group of LibTorch's that you made, with whatever backend. @throws InvalidArgument if it is null.
  explicit ProcessGroup(const c10::intrusive_ptr<c10d::ProcessGroup>& group);

  int64_t rank() const;  ///< 0 to size() - 1
  int64_t size() const;

  /// Returns when every rank has called it.
  void barrier() const;
  /// Overwrites `tensor` with the sum over ranks. The order of the additions depends on the backend and on where in the
  /// tensor an element lies, so that for three or more ranks the last bits of two layouts may differ.
  void all_reduce(at::Tensor tensor) const;
  /// Overwrites `tensor` with that of rank `root`.
  void broadcast(at::Tensor tensor, int64_t root = 0) const;
  /// The tensor of each rank, by rank.
  std::vector<at::Tensor> all_gather(const at::Tensor& tensor) const;
  /// Overwrites `whole`, contiguous and of size() times the elements of `part`, with the parts of the ranks, one after
  /// the other.
  void all_gather_into(at::Tensor whole, at::Tensor part) const;
  /// The text of each rank, by rank; any lengths.
  std::vector<std::string> all_gather(const std::string& text) const;

  /// LibTorch's group, for what is not here: include <torch/csrc/distributed/c10d/ProcessGroup.hpp>.
  const c10::intrusive_ptr<c10d::ProcessGroup>& c10d() const { return *group_; }

 private:
  std::shared_ptr<const c10::intrusive_ptr<c10d::ProcessGroup>> group_;
};

/// Which process this is and where rank 0 listens. Setters chain.
class ProcessGroupOptions {
 public:
  /// What the starter of this process left in its environment; the first of these that is there:
  ///   RANK, WORLD_SIZE, LOCAL_RANK                        `refrain launch`, torchrun
  ///   OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK            mpirun of Open MPI
  ///   PMI_RANK, PMI_SIZE, MPI_LOCALRANKID                 mpiexec of MPICH and Intel MPI
  /// and a world of one process if none is. With them MASTER_ADDR and MASTER_PORT, by default 127.0.0.1 and 29500; an
  /// mpirun over several machines needs MASTER_ADDR.
  /// @throws InvalidArgument  naming the variable, its value and what was expected.
  static ProcessGroupOptions from_environment();

  /// Default: 0 of 1.
  ProcessGroupOptions& rank(int64_t value) {
    rank_ = value;
    return *this;
  }
  int64_t rank() const { return rank_; }
  ProcessGroupOptions& world_size(int64_t value) {
    world_size_ = value;
    return *this;
  }
  int64_t world_size() const { return world_size_; }

  /// Place among the ranks of this machine, to choose a device by. Default: 0.
  ProcessGroupOptions& local_rank(int64_t value) {
    local_rank_ = value;
    return *this;
  }
  int64_t local_rank() const { return local_rank_; }

  /// Where rank 0 listens and the others look for it.
  ProcessGroupOptions& master_addr(std::string value) {
    master_addr_ = std::move(value);
    return *this;
  }
  const std::string& master_addr() const { return master_addr_; }
  ProcessGroupOptions& master_port(int64_t value) {
    master_port_ = value;
    return *this;
  }
  int64_t master_port() const { return master_port_; }

  /// Whether the starter serves the meeting point, so that rank 0 does not. Default: false; torchrun's agent does.
  ProcessGroupOptions& launcher_hosts_store(bool value) {
    launcher_hosts_store_ = value;
    return *this;
  }
  bool launcher_hosts_store() const { return launcher_hosts_store_; }

  /// How long to wait for all ranks to come. Default: 5 minutes.
  ProcessGroupOptions& rendezvous_timeout(std::chrono::milliseconds value) {
    rendezvous_timeout_ = value;
    return *this;
  }
  std::chrono::milliseconds rendezvous_timeout() const { return rendezvous_timeout_; }

  /// How late a rank may be in a collective, so also how long rank 0 may save or evaluate alone. Default: 30 minutes.
  /// A rank that has ended is noticed at once.
  ProcessGroupOptions& timeout(std::chrono::milliseconds value) {
    timeout_ = value;
    return *this;
  }
  std::chrono::milliseconds timeout() const { return timeout_; }

 private:
  int64_t rank_ = 0, world_size_ = 1, local_rank_ = 0, master_port_ = 29500;
  std::string master_addr_ = "127.0.0.1";
  bool launcher_hosts_store_ = false;
  std::chrono::milliseconds rendezvous_timeout_ = std::chrono::minutes(5), timeout_ = std::chrono::minutes(30);
};

/// Meets the other ranks and returns the group of all of them: over Gloo, and NCCL for tensors on CUDA devices where the
/// library was built against a LibTorch with CUDA and found nccl.h. Choose the device by `local_rank` before.
///
/// Gloo's connections go over the interface that GLOO_SOCKET_IFNAME names; else over loopback if rank 0 listens there,
/// and over that of the host's name if it does not.
/// @throws InvalidArgument   if an option is out of range.
/// @throws DistributedError  if not all came in time (names those missing), two say they are the same rank, they
///                           disagree on the size of the world, or the address cannot be used.
/// A second call makes a second group; all ranks make it. From the first on the process ignores SIGPIPE, unless it has
/// a handler of its own: Gloo would end it by that when another rank ends.
ProcessGroup init_process_group(const ProcessGroupOptions& options = ProcessGroupOptions::from_environment());

}  // namespace refrain
