#pragma once

#include <string>
#include <vector>

namespace refrain::cli {

/// Whose output a launcher passes on.
enum class Echo {
  kAll,       ///< of all ranks, each line with its rank in front
  kRankZero,  ///< standard output of rank 0 as it is; at the end, the last lines that the rank which failed, else
              ///< rank 0, wrote to standard error
};

struct Job {
  int ranks = 1;
  std::vector<std::string> command;  ///< program and arguments
  int port = 0;                      ///< where rank 0 listens; 0: one that is free
  Echo echo = Echo::kAll;
};

/// Runs `command` as ranks 0 to n-1 on this machine and waits for all. Each is told by RANK, WORLD_SIZE, LOCAL_RANK,
/// LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT who it is, and by OMP_NUM_THREADS its share of the cores if that is
/// not set.
///
/// When a rank ends badly, the others get SIGTERM, and SIGKILL five seconds later; so does everything they started.
/// SIGINT, SIGTERM and SIGHUP stop the job in the same way. Ranks die with the launcher, whatever ends it.
/// @return  0 if all ended with 0; else the exit code of the rank that failed first, 128 + n for signal n.
/// @throws InvalidArgument if the program cannot be started.
int launch(const Job& job);

}  // namespace refrain::cli
