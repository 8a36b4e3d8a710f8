#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>

#include "offload/block_device.h"
#include "offload/extents.h"
#include "refrain/bytes.h"

namespace refrain::offload {

/// Values on a `BlockDevice`: reserved, written once, read any number of times, freed. Reading returns what was
/// written, or throws. Threads: any; one at a time for each block.
class BlockFile {
 public:
  struct Block {
    Extents::Extent place;
    size_t nbytes = 0;      ///< of the value
    size_t stored = 0;      ///< bytes in the file
    uint64_t checksum = 0;  ///< XXH3 of the bytes in the file
  };

  /// @param level  of zstd, 0 for none. @throws InvalidArgument
  BlockFile(std::unique_ptr<BlockDevice> device, Bytes capacity, int level);

  /// @throws OffloadError  if there is no room.
  Block reserve(size_t nbytes);
  /// Writes, and frees the room that compression saves. @throws OffloadError  if the device fails; `block` stays
  /// reserved.
  void write(Block& block, const void* bytes);
  /// @throws OffloadError  if the device fails, ends early, or has other bytes than were written.
  void read(const Block& block, void* bytes);
  void free(const Block& block);

  Bytes size() const;
  Bytes used() const;

 private:
  void grow(int64_t size);
  void write_all(const Block& block, const char* bytes);
  void read_all(const Block& block, char* bytes);

  const std::unique_ptr<BlockDevice> device_;
  const Bytes capacity_;
  const int level_;
  mutable std::mutex mutex_;  ///< guards what follows
  Extents extents_;
  int64_t size_ = 0;
};

}  // namespace refrain::offload
