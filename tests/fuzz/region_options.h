#pragma once

#include <cstdint>
#include <string>

#include "refrain/checkpoint.h"

namespace refrain::fuzz {

class Rng;

/// How a region of a program is opened, as data.
struct RegionOptions {
  /// Which of the policies in the table of region_options.cc.
  struct PolicyChoice {
    int first = -1;       ///< -1: none
    int second = -1;      ///< if not -1: `and_then(first, second)`
    bool scoped = false;  ///< the whole only for operators under `ModuleScope("odd")`
    uint64_t seed = 0;    ///< for policies that throw dice
  };
  PolicyChoice policy;  ///< replay only
  bool rerun = false;
  // Rerun only; none of them may change anything.
  bool strict = false;
  bool early_stop = true;
  bool debug = false;
  bool is_noexcept = false;  ///< the function lets no exception out
  /// Inputs go to a store; `kByAllRanks`: to one that must be asked whether or not the bytes are in memory still.
  enum Inputs { kInMemory, kStored, kByAllRanks } inputs = kInMemory;

  bool has_policy() const { return policy.first >= 0; }
};

RegionOptions random_options(Rng& rng, bool in_rerun);
RegionOptions::PolicyChoice random_policy(Rng& rng);
CheckpointOptions to_checkpoint_options(const RegionOptions& options);

/// "(policy=save_matmuls)", or "" for the defaults.
std::string to_text(const RegionOptions& options);

}  // namespace refrain::fuzz
