#include <fmt/format.h>

#include <charconv>
#include <cstdlib>
#include <optional>
#include <string_view>

#include "refrain/distributed.h"

namespace refrain {
namespace {

constexpr int64_t kMostRanks = 1'000'000;

/// The variables in which one kind of launcher sets ranks.
struct Names {
  const char *rank, *world_size, *local_rank, *local_world_size;
};
constexpr Names kStarters[] = {
    {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"},
    {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"},
    {"PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"}};

/// Reads a variable; an empty one counts as unset.
const char* value_of(const char* name) {
  const char* const value = std::getenv(name);
  return value != nullptr && *value != '\0' ? value : nullptr;
}

std::optional<int64_t> number_of(const char* name, int64_t least, int64_t most) {
  const char* const text = value_of(name);
  if (text == nullptr) return std::nullopt;
  const std::string_view all = text;
  int64_t number = 0;
  const auto [end, error] = std::from_chars(all.data(), all.data() + all.size(), number);
  if (error != std::errc() || end != all.data() + all.size() || number < least || number > most) {
    throw InvalidArgument(fmt::format(
        "[refrain::init_process_group] the environment variable {} is '{}': expected a whole number from {} to {}.",
        name, text, least, most));
  }
  return number;
}

[[noreturn]] void miss(const char* found, const char* missing) {
  throw InvalidArgument(fmt::format(
      "[refrain::init_process_group] the environment variable {} is set and {} is not: expected both, as `refrain "
      "launch`, torchrun and mpirun set them, or neither for one process.",
      found, missing));
}

}  // namespace

ProcessGroupOptions ProcessGroupOptions::from_environment() {
  ProcessGroupOptions options;
  for (const Names& names : kStarters) {
    if (!value_of(names.rank) && !value_of(names.world_size)) continue;
    if (!value_of(names.world_size)) miss(names.rank, names.world_size);
    if (!value_of(names.rank)) miss(names.world_size, names.rank);
    options.world_size_ = *number_of(names.world_size, 1, kMostRanks);
    options.rank_ = *number_of(names.rank, 0, options.world_size_ - 1);
    options.local_rank_ = number_of(names.local_rank, 0, options.world_size_ - 1).value_or(options.rank_);
    const auto here = number_of(names.local_world_size, 1, options.world_size_);
    if (here && *here < options.world_size_ && !value_of("MASTER_ADDR")) {
      throw InvalidArgument(fmt::format(
          "[refrain::init_process_group] {} of {} ranks are on this machine and the environment variable MASTER_ADDR "
          "is not set: expected the address of rank 0's machine in it.",
          *here, options.world_size_));
    }
    break;
  }
  if (const char* address = value_of("MASTER_ADDR")) options.master_addr_ = address;
  options.master_port_ = number_of("MASTER_PORT", 1, 65535).value_or(options.master_port_);
  const char* const agent = value_of("TORCHELASTIC_USE_AGENT_STORE");
  options.launcher_hosts_store_ = agent != nullptr && std::string_view(agent) == "True";
  return options;
}

}  // namespace refrain
