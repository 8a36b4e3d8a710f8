#include "offload/block_file.h"

#include <fmt/format.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <system_error>
#include <utility>

#include "offload/compression.h"
#include "refrain/torch_error.h"

namespace refrain::offload {
namespace {

constexpr int64_t kGrowth = int64_t{64} << 20;

}  // namespace

BlockFile::BlockFile(std::unique_ptr<BlockDevice> device, Bytes capacity, int level)
    : device_(std::move(device)), capacity_(capacity), level_(level) {
  check_level(level);
}

BlockFile::Block BlockFile::reserve(size_t nbytes) {
  const int64_t size = Extents::round_up(static_cast<int64_t>(nbytes));
  std::lock_guard lock(mutex_);
  auto place = extents_.take(size);
  if (!place) {
    const int64_t least = size_ + size - extents_.free_before(size_);
    if (least > capacity_)
      throw OffloadError(
          fmt::format("[refrain::offload] {} has no room for {}: it would be larger than its capacity of {}. Raise "
                      "OffloadOptions::capacity or offload less.",
                      device_->name(), format_bytes(size), format_bytes(capacity_)));
    try {
      grow(std::min(std::max(least, size_ + kGrowth), capacity_ / 4096 * 4096));
    } catch (const std::system_error&) {
      try {
        grow(least);
      } catch (const std::system_error& error) {
        throw OffloadError(fmt::format(
            "[refrain::offload] {} has no room for {}: {} ({} in use). Free some space, set OffloadOptions::directory "
            "to another disk, or offload less.",
            device_->name(), format_bytes(size), error.code().message(), format_bytes(size_ - extents_.free_bytes())));
      }
    }
    place = extents_.take(size);
  }
  return {*place, nbytes, nbytes, 0};
}

void BlockFile::grow(int64_t size) {
  device_->grow(size);
  extents_.give_back({size_, size - std::exchange(size_, size)});
}

void BlockFile::write(Block& block, const void* bytes) {
  const auto* from = static_cast<const char*>(bytes);
  std::string smaller;
  if (level_ != 0) smaller = compressed(from, block.nbytes, level_);
  if (!smaller.empty()) {
    from = smaller.data();
    block.stored = smaller.size();
    const int64_t needed = Extents::round_up(static_cast<int64_t>(block.stored));
    std::lock_guard lock(mutex_);
    extents_.give_back({block.place.offset + needed, block.place.size - needed});
    block.place.size = needed;
  }
  block.checksum = XXH3_64bits(from, block.stored);
  write_all(block, from);
}

void BlockFile::write_all(const Block& block, const char* bytes) {
  for (size_t done = 0; done < block.stored;) {
    const int64_t offset = block.place.offset + static_cast<int64_t>(done);
    try {
      done += device_->write(bytes + done, block.stored - done, offset);
    } catch (const std::system_error& error) {
      throw OffloadError(fmt::format(
          "[refrain::offload] cannot write {} bytes at {} of {}: {}. Set OffloadOptions::directory to another disk.",
          block.stored - done, offset, device_->name(), error.code().message()));
    }
  }
}

void BlockFile::read(const Block& block, void* bytes) {
  std::string smaller;
  auto* to = static_cast<char*>(bytes);
  if (block.stored != block.nbytes) {
    smaller.resize(block.stored);
    to = smaller.data();
  }
  read_all(block, to);
  const uint64_t found = XXH3_64bits(to, block.stored);
  const bool intact =
      found == block.checksum && (smaller.empty() || decompress(smaller, static_cast<char*>(bytes), block.nbytes));
  if (!intact)
    throw OffloadError(fmt::format(
        "[refrain::offload] {} bytes at {} of {} are not those that were written: their checksum is {:016x}, expected "
        "{:016x}. Parameters and optimizer state are as before this backward: run the step again, and look for "
        "another disk (OffloadOptions::directory).",
        block.stored, block.place.offset, device_->name(), found, block.checksum));
}

void BlockFile::read_all(const Block& block, char* bytes) {
  const auto fail = [&](const std::string& why) {
    throw OffloadError(fmt::format(
        "[refrain::offload] cannot read {} bytes at {} of {}: {}. Parameters and optimizer state are as before this "
        "backward: run the step again, or set OffloadOptions::directory to another disk.",
        block.stored, block.place.offset, device_->name(), why));
  };
  for (size_t done = 0; done < block.stored;) {
    size_t n = 0;
    try {
      n = device_->read(bytes + done, block.stored - done, block.place.offset + static_cast<int64_t>(done));
    } catch (const std::system_error& error) {
      fail(error.code().message());
    }
    if (n == 0) fail(fmt::format("the file is truncated after {} of them", done));
    done += n;
  }
}

void BlockFile::free(const Block& block) {
  std::lock_guard lock(mutex_);
  extents_.give_back(block.place);
}

Bytes BlockFile::size() const {
  std::lock_guard lock(mutex_);
  return size_;
}

Bytes BlockFile::used() const {
  std::lock_guard lock(mutex_);
  return size_ - extents_.free_bytes();
}

}  // namespace refrain::offload
