#pragma once

#include <string>
#include <utility>
#include <vector>

#include "models/zoo.h"
#include "refrain/checkpoint.h"

namespace refrain::models {

/// What every model of the zoo shares: name, sizes, and the current strategy.
class ModelBase : public TrainableModel {
 public:
  ModelBase(std::string name, const ModelOptions& options, std::vector<std::string> strategies)
      : name_(std::move(name)), options_(options), strategies_(std::move(strategies)) {}

  const std::string& name() const override { return name_; }
  const ModelOptions& options() const override { return options_; }
  std::vector<std::string> strategies() const override { return strategies_; }
  /// Also takes `checkpoint`, what other tools call `per_block`.
  void set_strategy(const std::string& strategy) override;

 protected:
  bool strategy_is(const char* name) const { return strategy_ == name; }

 private:
  std::string name_;
  ModelOptions options_;
  std::vector<std::string> strategies_;
  std::string strategy_ = "none";
};

/// Seeded CPU generator of its own: the default one is not touched.
at::Generator own_generator(uint64_t seed);

/// `refrain::checkpoint(fn, args...)` if `on`, else `fn(args...)`.
template <typename F, typename... Args>
decltype(auto) checkpoint_if(bool on, F&& fn, Args&&... args) {
  if (on) return refrain::checkpoint(std::forward<F>(fn), std::forward<Args>(args)...);
  return refrain::detail::call(std::forward<F>(fn), std::forward<Args>(args)...);
}

}  // namespace refrain::models
