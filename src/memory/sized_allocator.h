#pragma once

#include <cstddef>

namespace refrain {

/// Interface of the layers of the CPU memory stack. Each layer adds one behaviour and passes the rest to the layer
/// below; `TorchAllocator` shows the stack to LibTorch.
///
///     TorchAllocator -> LimitingAllocator -> TrackingAllocator -> FailingAllocator -> PoisoningAllocator
///     -> ResidentAllocator -> HeapAllocator
///
/// Every layer: any thread; if `allocate` throws, the layer is as it was before the call.
class SizedAllocator {
 public:
  virtual ~SizedAllocator() = default;

  /// @param bytes  > 0.
  /// @return  that many bytes, aligned to 64; never null.
  /// @throws c10::OutOfMemoryError, or what the layer below throws.
  virtual void* allocate(size_t bytes) = 0;

  /// @param data, bytes  result and argument of `allocate` of the same layer.
  virtual void deallocate(void* data, size_t bytes) noexcept = 0;
};

}  // namespace refrain
