#pragma once

#include <filesystem>
#include <string>

#include "refrain/bytes.h"

namespace refrain {

/// The resident bytes of this process, as the system counts them. Zeros where it does not.
struct ResidentBytes {
  Bytes current = 0;
  Bytes peak = 0;  ///< since the process began or `reset_resident_peak`
};

/// Reads both. Cost: 20 us.
ResidentBytes resident_bytes();
/// Reads only the current ones. Cost: 3 us.
Bytes resident_now();
/// Reads the peak since the process began, or `reset_resident_peak`; that of the program that started this one, if
/// higher. Cost: 0.5 us.
Bytes resident_high();
void reset_resident_peak();

/// Memory that this process could still get.
struct AvailableMemory {
  Bytes bytes = 0;
  std::string source;  ///< the file that bounds it
};

/// Reads the minimum of the free memory of the system and of each control group above this process (v1 or v2); pages of
/// files that were not used lately count as free. Swap does not count.
/// @param root  under which /proc and the control groups' mount points are looked for.
/// @throws EnvironmentError  if the system does not say what is free: names the file.
AvailableMemory available_memory(const std::filesystem::path& root = "/");

}  // namespace refrain
