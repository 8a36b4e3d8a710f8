#pragma once

#include <c10/util/Exception.h>

namespace refrain::tape {

/// While it lives, LibTorch's warnings on this thread go nowhere: what runs again has warned in forward, and replacing a kernel warns. Cost: a few ns.
class Unwarned final : public c10::WarningHandler {
 public:
  void process(const c10::Warning&) override {}

 private:
  c10::WarningUtils::WarningHandlerGuard guard_{this};
};

}  // namespace refrain::tape
