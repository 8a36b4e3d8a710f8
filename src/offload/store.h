#pragma once

#include <memory>

#include "offload/block_device.h"
#include "refrain/offload.h"
#include "tape/offload.h"

namespace refrain::offload {

/// Implementation behind an `OffloadStore`.
class Store : public tape::OffloadStore {
 public:
  virtual void flush() = 0;
  virtual OffloadStats stats() = 0;
  virtual void reset_stats() = 0;
};

std::shared_ptr<Store> make_host_store(const OffloadOptions& options);
std::shared_ptr<Store> make_disk_store(const OffloadOptions& options, std::unique_ptr<BlockDevice> device);

}  // namespace refrain::offload
