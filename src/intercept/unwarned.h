#pragma once

#include <c10/util/Exception.h>

namespace refrain::tape {

/// Suppresses LibTorch's warnings on this thread while alive: recomputed operators warned in forward already, and
/// replacing a kernel warns. Cost: a few ns.
class Unwarned final : public c10::WarningHandler {
 public:
  void process(const c10::Warning&) override {}

 private:
  c10::WarningUtils::WarningHandlerGuard guard_{this};
};

}  // namespace refrain::tape
