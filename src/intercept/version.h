#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/TensorImpl.h>
#include <fmt/format.h>

#include <cstdint>
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
  bool moved() const { return counter_.enabled() && counter_.current_version() != version_; }
  std::string text() const {
    return fmt::format("at version {}, expected version {}", counter_.current_version(), version_);
  }

 private:
  c10::VariableVersion counter_;
  uint32_t version_ = 0;
};

}  // namespace refrain::tape
