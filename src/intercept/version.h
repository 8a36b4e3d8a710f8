#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/TensorImpl.h>
#include <fmt/format.h>

#include <cstdint>
#include <cstring>
#include <string>

namespace refrain::tape {

/// Whether the version counter of a tensor has moved.
class Version {
 public:
  Version() = default;
  explicit Version(const at::Tensor& tensor) {
    if (tensor.is_inference()) return;
    counter_ = tensor.unsafeGetTensorImpl()->version_counter();
    version_ = counter_.current_version();
  }
  /// Whether an operator that overwrites `tensor` will move it; through `data()`, which has a counter of its own, none does.
  bool moves_with(const at::Tensor& tensor) const {
    if (!counter_.enabled() || tensor.is_inference()) return false;
    // one counter, shared, behind a pointer that LibTorch does not show
    static_assert(sizeof(c10::VariableVersion) == sizeof(void*));
    const auto& other = tensor.unsafeGetTensorImpl()->version_counter();
    return std::memcmp(static_cast<const void*>(&counter_), static_cast<const void*>(&other), sizeof counter_) == 0;
  }
  bool moved() const { return counter_.enabled() && counter_.current_version() != version_; }
  std::string text() const {
    return fmt::format("at version {}, expected version {}", counter_.current_version(), version_);
  }

 private:
  c10::VariableVersion counter_;
  uint32_t version_ = 0;
};

}  // namespace refrain::tape
