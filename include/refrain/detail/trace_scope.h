#pragma once

#include <cstdint>
#include <string_view>
#include <typeinfo>

namespace torch::nn {
class Module;
}

namespace refrain::detail {

/// A name for what runs on this thread, while it lives and a step is traced; unlike that of a `ModuleScope`, policies
/// do not see it. Cost: one load while no step is traced.
class TraceScope {
 public:
  /// One of a row: "segments.2".
  TraceScope(std::string_view row, int64_t number);
  /// A marked module, by its name in the model that `apply_checkpointing` was given, or what of that is not open yet;
  /// no name if it has no mark.
  explicit TraceScope(const torch::nn::Module& module);
  /// Else by its class and how many of that class were met before it, if a `std::shared_ptr` owns it: "Block.2".
  TraceScope(const torch::nn::Module& module, const std::type_info& type);
  ~TraceScope();
  TraceScope(const TraceScope&) = delete;
  TraceScope& operator=(const TraceScope&) = delete;

 private:
  void open(std::string_view name);
  bool is_open_ = false;
};

}  // namespace refrain::detail
