#pragma once

#include <filesystem>
#include <string>

#include "refrain/bytes.h"

namespace refrain {

/// What the system says of this process. Zeros where it says nothing.
struct ResidentBytes {
  Bytes current = 0;
  Bytes peak = 0;  ///< since the process began or `reset_resident_peak`
};

/// Cost: 20 us.
ResidentBytes resident_bytes();
/// Only the current ones. Cost: 3 us.
Bytes resident_now();
/// Highest since the process began, or `reset_resident_peak`; of the program that started this one, if that was higher. Cost: 0.5 us.
Bytes resident_high();
void reset_resident_peak();

/// What this process could have beside what it has.
struct AvailableMemory {
  Bytes bytes = 0;
  std::string source;  ///< the file that bounds it
};

/// The least of what the system and each control group above this process (v1 or v2) have free; pages of files that were not used
/// lately count as free. Swap does not count.
/// @param root  under which /proc and the control groups' mount points are looked for.
/// @throws Error  if the system does not say what is free: names the file.
AvailableMemory available_memory(const std::filesystem::path& root = "/");

}  // namespace refrain
