#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "refrain/api.h"

namespace torch::optim {
class Optimizer;
}
namespace torch::serialize {
class InputArchive;
class OutputArchive;
}  // namespace torch::serialize

/// Adds mixed precision: LibTorch's operators can cast their arguments (autocast), but its C++ API has neither the
/// scope that switches that on and off nor the scaling of the loss that float16 needs. Regions work under both: what is
/// recomputed in backward sees the autocast of forward, and casts of weights that autocast caches are shared by the
/// regions of a scope.
namespace refrain {

/// Runs operators of one device type in a smaller dtype while it lives, as LibTorch's autocast lists name them.
///
/// - Put it around forward and loss, not around backward, which runs in the dtypes of forward by itself.
/// - Scopes nest, also those of different device types; each restores what it found.
/// - The outermost to end, of all device types, empties the cache of cast weights: without that the next step would
///   compute with the weights of this one.
///
/// Threads: its own only; destroy it on the thread that made it.
/// Cost: under 1 us.
/// Source: torch.autocast.
class REFRAIN_API AutocastScope {
 public:
  /// Switches autocast on.
  /// @param device         of which the type counts: `at::kCPU`, `tensor.device()`.
  /// @param dtype          `at::kBFloat16` or `at::kHalf`.
  /// @param cache_enabled  whether a weight that requires a gradient is cast once in the scope. Default: as it is
  ///                       outside.
  /// @throws InvalidArgument  for a device type without autocast, or another dtype; Python warns and continues without.
  AutocastScope(at::Device device, at::ScalarType dtype, std::optional<bool> cache_enabled = std::nullopt);
  /// Makes a scope without autocast inside of one with it, for operators that need all digits: cast what comes in.
  /// @param device  of which the type counts.
  /// @throws InvalidArgument  for a device type without autocast.
  [[nodiscard]] static AutocastScope off(at::Device device);
  ~AutocastScope();
  AutocastScope(const AutocastScope&) = delete;
  AutocastScope& operator=(const AutocastScope&) = delete;

 private:
  AutocastScope(at::Device device, at::ScalarType dtype, bool cache_enabled, bool enabled);

  at::DeviceType device_;
  at::ScalarType dtype_before_;
  bool enabled_before_, cache_enabled_before_;
};

/// Configures how a `GradScaler` chooses its scale. Setters chain: `GradScalerOptions().init_scale(1024)`. The defaults
/// are torch.amp's.
class GradScalerOptions {
 public:
  /// Sets the first scale. Default: 65536.
  /// @param value  finite and above 0.
  GradScalerOptions& init_scale(double value) {
    init_scale_ = value;
    return *this;
  }
  double init_scale() const { return init_scale_; }

  /// Sets what the scale is multiplied by after `growth_interval` updates in a row without inf or NaN. Default: 2.
  /// @param value  finite and above 1.
  GradScalerOptions& growth_factor(double value) {
    growth_factor_ = value;
    return *this;
  }
  double growth_factor() const { return growth_factor_; }

  /// Sets what the scale is multiplied by at an update after an inf or NaN. Default: 0.5.
  /// @param value  above 0 and below 1.
  GradScalerOptions& backoff_factor(double value) {
    backoff_factor_ = value;
    return *this;
  }
  double backoff_factor() const { return backoff_factor_; }

  /// Sets after how many updates in a row without inf or NaN the scale grows. Default: 2000.
  /// @param value  updates; 1 to 2^31 - 1.
  GradScalerOptions& growth_interval(int64_t value) {
    growth_interval_ = value;
    return *this;
  }
  int64_t growth_interval() const { return growth_interval_; }

  /// Enables scaling. With `false`, `scale` returns its argument, `step` only steps, and the others do nothing: one
  /// training loop for all dtypes. Default: true.
  GradScalerOptions& enabled(bool value) {
    enabled_ = value;
    return *this;
  }
  bool enabled() const { return enabled_; }

 private:
  double init_scale_ = 65536.0, growth_factor_ = 2.0, backoff_factor_ = 0.5;
  int64_t growth_interval_ = 2000;
  bool enabled_ = true;
};

/// Holds what a `GradScaler` has to remember from one step to the next. Fields as in `GradScalerOptions`.
struct GradScalerState {
  double scale = 0.0;
  double growth_factor = 0.0, backoff_factor = 0.0;
  int64_t growth_interval = 0;
  int64_t growth_tracker = 0;  ///< updates without inf or NaN since the scale last changed
  bool operator==(const GradScalerState&) const = default;
};

/// Multiplies the loss, so that small float16 gradients do not become 0, and divides the gradients before the optimizer
/// uses them; skips the step, and lowers the scale, where one of them is inf or NaN.
///
/// ```
/// scaler.scale(loss).backward();
/// scaler.unscale_(optimizer);  // only to look at the gradients or to clip them
/// scaler.step(optimizer);
/// scaler.update();
/// ```
/// - With several optimizers: `step` for each, then one `update`.
/// - Weights and their gradients are float32 (or bfloat16); only what autocast casts is float16.
/// - The scale is a tensor on the device of the first loss, and nothing but `step` waits for a device.
///
/// Threads: none of its own; not to be shared.
/// Source: torch.amp.GradScaler; tests/train compares both step by step.
class REFRAIN_API GradScaler {
 public:
  /// Makes a scaler with the first scale.
  /// @param options  how the scale is chosen.
  /// @throws InvalidArgument  if an option is out of its range.
  explicit GradScaler(const GradScalerOptions& options = {});
  GradScaler(GradScaler&&) = default;
  GradScaler& operator=(GradScaler&&) = default;

  /// Multiplies `output` by the scale; on any device.
  /// @param output  a float32 loss: the largest float16 is 65504.
  /// @return  the scaled loss; `output` itself if not enabled.
  /// @throws InvalidArgument  if `output` is undefined.
  at::Tensor scale(const at::Tensor& output);

  /// Multiplies each of `outputs` by the scale.
  /// @param outputs  float32 losses, on any devices.
  /// @return  the scaled losses; `outputs` themselves if not enabled.
  /// @throws InvalidArgument  if one of `outputs` is undefined.
  std::vector<at::Tensor> scale(const std::vector<at::Tensor>& outputs);

  /// Divides the gradients of this optimizer's parameters by the scale, in place, and notes whether one is inf or NaN.
  /// `step` calls it where you did not.
  /// @param optimizer  whose parameters have gradients; of sparse ones the values are divided.
  /// @throws InvalidArgument  if nothing was scaled yet; the second time since `update`; after `step`; for float16
  ///                          gradients, before any gradient is touched.
  void unscale_(torch::optim::Optimizer& optimizer);

  /// Steps if no gradient was inf or NaN. Waits for the device.
  /// @param optimizer  the one to step.
  /// @return  whether it stepped.
  /// @throws InvalidArgument  as `unscale_`; if none of the optimizer's parameters has a gradient.
  bool step(torch::optim::Optimizer& optimizer);

  /// Steps with a closure; for a scaler that is not enabled.
  /// @param optimizer  the one to step.
  /// @param closure    computes the loss and its gradients.
  /// @return  the loss that `closure` returned.
  /// @throws InvalidArgument  if the scaler is enabled: a closure computes gradients that nobody divided.
  at::Tensor step(torch::optim::Optimizer& optimizer, std::function<at::Tensor()> closure);

  /// Lowers the scale if an optimizer met inf or NaN since the last update, raises it if none did for `growth_interval`
  /// updates. A scale never grows to inf. Call it once at the end of each step.
  /// @throws InvalidArgument  if no optimizer's gradients were checked since the last.
  void update();

  /// Sets the scale instead.
  /// @param new_scale  finite and above 0.
  /// @throws InvalidArgument  if `new_scale` is out of range; if nothing was scaled yet.
  void update(double new_scale);

  /// Sets the scale instead, without waiting for the device.
  /// @param new_scale  one floating point element without gradient; its value is not looked at.
  /// @throws InvalidArgument  if `new_scale` is another tensor; if nothing was scaled yet.
  void update(const at::Tensor& new_scale);

  /// Returns the scale; 1 if not enabled. Waits for the device.
  [[nodiscard]] double get_scale() const;
  double get_growth_factor() const { return growth_factor_; }
  double get_backoff_factor() const { return backoff_factor_; }
  int64_t get_growth_interval() const { return growth_interval_; }
  bool is_enabled() const { return enabled_; }

  /// Sets `GradScalerOptions::growth_factor` from the next `update` on.
  /// @param value  finite and above 1.
  /// @throws InvalidArgument  if `value` is out of range.
  void set_growth_factor(double value);

  /// Sets `GradScalerOptions::backoff_factor` from the next `update` on.
  /// @param value  above 0 and below 1.
  /// @throws InvalidArgument  if `value` is out of range.
  void set_backoff_factor(double value);

  /// Sets `GradScalerOptions::growth_interval` from the next `update` on.
  /// @param value  updates; 1 to 2^31 - 1.
  /// @throws InvalidArgument  if `value` is out of range.
  void set_growth_interval(int64_t value);

  /// Returns what `load_state` needs to continue from here; none if not enabled. Call it after `update`. Waits for the
  /// device.
  [[nodiscard]] std::optional<GradScalerState> state() const;

  /// Continues from `state`; nothing happens if this scaler is not enabled.
  /// @param state  of an enabled scaler.
  /// @throws InvalidArgument  if there is none, as from a scaler that was not enabled, or a field is out of range.
  void load_state(const std::optional<GradScalerState>& state);

  /// Writes the state to an archive of LibTorch's; so `torch::save(scaler, file)` works too.
  /// @param archive  the one to write to.
  void save(torch::serialize::OutputArchive& archive) const;

  /// Reads the state from an archive of LibTorch's; so `torch::load(scaler, file)` works too. After an error nothing
  /// has changed.
  /// @param archive  one that `save` wrote.
  /// @throws FormatError      if the archive holds no state.
  /// @throws InvalidArgument  as `load_state`.
  void load(torch::serialize::InputArchive& archive);

 private:
  enum class Stage { kReady, kUnscaled, kStepped };
  /// State of one optimizer since the last update.
  struct Checks {
    Stage stage = Stage::kReady;
    std::vector<std::pair<at::Device, at::Tensor>> found_inf = {};  ///< a float above 0 if so, by device of gradients
  };

  void require_scale(const char* what) const;

  double scale_value_, growth_factor_, backoff_factor_;  ///< the first: while there is no tensor
  int64_t growth_interval_, growth_tracker_value_ = 0;
  bool enabled_;
  at::Tensor scale_, growth_tracker_;
  std::unordered_map<const torch::optim::Optimizer*, Checks> checks_;
};

/// Writes the state of `scaler` to `archive`, for `torch::save`.
/// @return  `archive`.
REFRAIN_API torch::serialize::OutputArchive& operator<<(torch::serialize::OutputArchive& archive,
                                                        const GradScaler& scaler);

/// Reads the state of `scaler` from `archive`, for `torch::load`.
/// @return  `archive`.
/// @throws FormatError      if the archive holds no state.
/// @throws InvalidArgument  as `GradScaler::load_state`.
REFRAIN_API torch::serialize::InputArchive& operator>>(torch::serialize::InputArchive& archive, GradScaler& scaler);

}  // namespace refrain
