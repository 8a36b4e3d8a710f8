#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

namespace refrain::offload {

/// Storage of a `BlockFile`. Threads: any, on parts that do not overlap; `grow` by one at a time.
/// All calls throw std::system_error if the system refuses.
class BlockDevice {
 public:
  virtual ~BlockDevice() = default;
  /// Reserves room, so that writing below `size` cannot find the disk full. `size` is larger than before.
  virtual void grow(int64_t size) = 0;
  /// @returns bytes written from the start of `bytes`, at least 1.
  virtual size_t write(const char* bytes, size_t nbytes, int64_t offset) = 0;
  /// @returns bytes read, 0 at the end.
  virtual size_t read(char* bytes, size_t nbytes, int64_t offset) = 0;
  /// Name for messages: "the offload file in `/tmp`".
  virtual std::string name() const = 0;
};

/// Opens a file without a name in `directory` (the system's temporary one if empty), which ends with the process,
/// however that ends.
/// @throws InvalidArgument  if the system refuses.
std::unique_ptr<BlockDevice> open_scratch_file(const std::filesystem::path& directory);

}  // namespace refrain::offload
