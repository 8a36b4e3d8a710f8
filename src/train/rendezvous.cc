#include <fmt/format.h>
#include <fmt/ranges.h>

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "refrain/distributed.h"
#include "train/errors.h"
#include "train/nccl.h"

namespace refrain {
namespace {

using Clock = std::chrono::steady_clock;
using Store = c10::intrusive_ptr<c10d::Store>;

constexpr const char* kWhere = "[refrain::init_process_group]";

std::string seconds(std::chrono::milliseconds time) {
  return fmt::format("{:g} s", static_cast<double>(time.count()) / 1000.0);
}

std::string place(const ProcessGroupOptions& options) {
  return fmt::format("{}:{}", options.master_addr(), options.master_port());
}

void check(const ProcessGroupOptions& options) {
  const auto require = [](bool holds, const auto& found, const std::string& expected) {
    if (!holds) throw InvalidArgument(fmt::format("{} {}: expected {}.", kWhere, found, expected));
  };
  require(options.world_size() >= 1, fmt::format("world_size {}", options.world_size()), "1 or more");
  require(options.rank() >= 0 && options.rank() < options.world_size(), fmt::format("rank {}", options.rank()),
          fmt::format("0 to {}", options.world_size() - 1));
  require(options.master_port() >= 1 && options.master_port() <= 65535,
          fmt::format("master_port {}", options.master_port()), "1 to 65535");
  require(!options.master_addr().empty(), "master_addr ''", "the address of rank 0's machine");
  require(options.rendezvous_timeout().count() > 0, "rendezvous_timeout " + seconds(options.rendezvous_timeout()),
          "more than 0");
  require(options.timeout().count() > 0, "timeout " + seconds(options.timeout()), "more than 0");
}

/// Name of a group, unique among those of one job at one address: its attempts, which torchrun counts, and the calls of
/// this function.
std::string group_name() {
  static std::atomic<int> calls{0};
  const char* const attempt = std::getenv("TORCHELASTIC_RESTART_COUNT");
  return fmt::format("refrain/{}/{}", attempt ? attempt : "0", calls++);
}

Store open_store(const ProcessGroupOptions& options) {
  c10d::TCPStoreOptions store;
  store.port = static_cast<uint16_t>(options.master_port());
  store.isServer = options.rank() == 0 && !options.launcher_hosts_store();
  store.waitWorkers = false;  // its error names how many are missing, not which
  store.timeout = options.rendezvous_timeout();
  store.multiTenant = true;
  try {
    return c10::make_intrusive<c10d::TCPStore>(options.master_addr(), store);
  } catch (const std::exception& error) {
    if (store.isServer) {
      throw DistributedError(fmt::format("{} rank 0 cannot listen at {}: {}; choose another MASTER_PORT.", kWhere,
                                         place(options), first_line(error)));
    }
    throw DistributedError(fmt::format("{} rank 0 of {} is missing at {} after {} (rank {} waited): {}.", kWhere,
                                       options.world_size(), place(options), seconds(options.rendezvous_timeout()),
                                       options.rank(), first_line(error)));
  }
}

std::string key_of(int64_t rank) { return fmt::format("rank {}", rank); }

/// Registers this rank; two processes must not register the same.
void arrive(c10d::Store& store, const ProcessGroupOptions& options) {
  const std::string size = std::to_string(options.world_size());
  const std::string theirs = store.compareSet("size", "", size);
  if (theirs != size) {
    throw DistributedError(
        fmt::format("{} found world_size {} on rank {} and {} on another rank: start all with "
                    "the same number.",
                    kWhere, size, options.rank(), theirs));
  }
  if (store.add(key_of(options.rank()), 1) != 1) {
    throw DistributedError(
        fmt::format("{} two processes at {} say that they are rank {} of {}: give each its own "
                    "RANK, or each job its own MASTER_PORT.",
                    kWhere, place(options), options.rank(), size));
  }
}

[[noreturn]] void give_up(c10d::Store& store, const ProcessGroupOptions& options) {
  std::vector<int64_t> missing;
  for (int64_t rank = 0; rank < options.world_size(); ++rank) {
    if (!store.check({key_of(rank)})) missing.push_back(rank);
  }
  const bool one = missing.size() == 1;
  throw DistributedError(
      fmt::format("{} rank{} {} of {} {} missing at {} after {} (rank {} waited): see whether {} started.", kWhere,
                  one ? "" : "s", fmt::join(missing, ", "), options.world_size(), one ? "is" : "are", place(options),
                  seconds(options.rendezvous_timeout()), options.rank(), one ? "it was" : "they were"));
}

/// Waits for all others.
void meet(c10d::Store& store, const ProcessGroupOptions& options, Clock::time_point deadline) {
  int64_t rank = 0;
  try {
    arrive(store, options);
    for (; rank < options.world_size(); ++rank) {
      while (!store.check({key_of(rank)})) {
        if (Clock::now() > deadline) give_up(store, options);
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      }
    }
  } catch (const c10::Error& error) {
    throw DistributedError(fmt::format("{} rank 0 of {} exited while rank {} waited for rank {}: {}.", kWhere,
                                       options.world_size(), options.rank(), rank, first_line(error)));
  }
}

std::shared_ptr<::gloo::transport::Device> choose_device(const ProcessGroupOptions& options) {
  const char* const interface = std::getenv("GLOO_SOCKET_IFNAME");
  if (interface != nullptr && *interface != '\0') return c10d::ProcessGroupGloo::createDeviceForInterface(interface);
  const std::string& address = options.master_addr();
  const bool is_local = options.world_size() == 1 || address == "localhost" || address.starts_with("127.");
  return is_local ? c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1")
                  : c10d::ProcessGroupGloo::createDefaultDevice();
}

c10::intrusive_ptr<c10d::ProcessGroup> connect(const Store& store, const ProcessGroupOptions& options) {
  const auto rank = static_cast<int>(options.rank()), size = static_cast<int>(options.world_size());
  try {
    auto gloo_options = c10d::ProcessGroupGloo::Options::create(options.rendezvous_timeout());
    gloo_options->devices.push_back(choose_device(options));
    auto gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank, size, gloo_options);
    gloo->setTimeout(options.timeout());
    auto group = c10::make_intrusive<c10d::ProcessGroup>(store, rank, size);
    group->setDefaultBackend(c10d::ProcessGroup::BackendType::GLOO);
    group->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::GLOO, gloo);
    add_nccl(*group, store, options.timeout());
    return group;
  } catch (const std::exception& error) {
    throw DistributedError(
        fmt::format("{} rank {} of {} joined at {} and cannot connect to another rank: "
                    "{}; see whether it exited, or name an interface in GLOO_SOCKET_IFNAME.",
                    kWhere, rank, size, place(options), first_line(error)));
  }
}

// Gloo writes into the connection to a rank that has exited, which would end this process silently.
void survive_broken_pipes() {
  struct sigaction now {};
  if (sigaction(SIGPIPE, nullptr, &now) == 0 && now.sa_handler == SIG_DFL) std::signal(SIGPIPE, SIG_IGN);
}

}  // namespace

ProcessGroup init_process_group(const ProcessGroupOptions& options) {
  check(options);
  survive_broken_pipes();
  if (options.world_size() == 1) return ProcessGroup(connect(c10::make_intrusive<c10d::HashStore>(), options));
  const auto deadline = Clock::now() + options.rendezvous_timeout();
  const Store store = c10::make_intrusive<c10d::PrefixStore>(group_name(), open_store(options));
  meet(*store, options, deadline);
  return ProcessGroup(connect(store, options));
}

}  // namespace refrain
