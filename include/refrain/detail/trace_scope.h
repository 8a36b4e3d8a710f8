#pragma once

#include <cstdint>
#include <string_view>
#include <typeinfo>

#include "refrain/api.h"

namespace torch::nn {
class Module;
}

namespace refrain::detail {

/// Names what runs on this thread, while it lives and a step is traced. Unlike the name of a `ModuleScope`, policies do
/// not see it.
/// Cost: one load while no step is traced.
class REFRAIN_API TraceScope {
 public:
  /// Names one of a sequence: "segments.2".
  TraceScope(std::string_view row, int64_t number);
  /// Names a marked module by its name in the model that `apply_checkpointing` was given, or by the part of that which
  /// is not open yet. No name if it has no mark.
  explicit TraceScope(const torch::nn::Module& module);
  /// Names a marked module as above, another by its class and, if a `std::shared_ptr` owns it, how many of that class
  /// were met before it: "Block.2".
  TraceScope(const torch::nn::Module& module, const std::type_info& type);
  ~TraceScope();
  TraceScope(const TraceScope&) = delete;
  TraceScope& operator=(const TraceScope&) = delete;

 private:
  void open(std::string_view name);
  bool is_open_ = false;
};

}  // namespace refrain::detail
