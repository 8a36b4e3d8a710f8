#include "intercept/surroundings.h"

#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/autocast_mode.h>
#include <c10/core/DefaultDtype.h>

#include <condition_variable>
#include <mutex>

#include "refrain/torch_error.h"

namespace refrain::tape {

Surroundings::Surroundings() : default_dtype_(c10::get_default_dtype_as_scalartype()) {
  for (const auto device : at::autocast::_AUTOCAST_SUPPORTED_DEVICES) {
    autocast_dtypes_.push_back(at::autocast::get_autocast_dtype(device));
    autocast_ |= at::autocast::is_autocast_enabled(device);
  }
  autocast_cache_ = at::autocast::is_autocast_cache_enabled();
  if (const auto accelerator = at::getAccelerator()) {
    const auto& hooks = at::globalContext().getAcceleratorHooksInterface(accelerator);
    if (hooks.isAvailable()) device_ = at::Device(*accelerator, hooks.getCurrentDevice());
  }
}

namespace {

/// The default dtype that reruns have set.
struct InForce {
  std::mutex mutex;
  std::condition_variable ended;
  int64_t scopes = 0;
  at::ScalarType dtype = at::kFloat, outside = at::kFloat;
  static InForce& get() {
    static auto* const all = new InForce;
    return *all;
  }
};

thread_local int dtype_scopes = 0;

void set_default_dtype(at::ScalarType dtype) {
  if (c10::get_default_dtype_as_scalartype() != dtype) c10::set_default_dtype(c10::scalarTypeToTypeMeta(dtype));
}

// All but the default dtype, which is set.
void refuse_changed_switches(const Ambient& then) {
  if (const auto now = Ambient::now(); !then.same_switches(now))
    throw CheckpointError("[refrain::checkpoint] cannot rerun the function as it ran in forward: " +
                          describe_change(then, now) + ". Restore the setting before backward.");
}

}  // namespace

DefaultDtypeScope::DefaultDtypeScope(at::ScalarType dtype) {
  auto& all = InForce::get();
  std::unique_lock lock(all.mutex);
  if (dtype_scopes++ > 0) {
    inner_before_ = c10::get_default_dtype_as_scalartype();
    set_default_dtype(dtype);
    return;
  }
  all.ended.wait(lock, [&] { return all.scopes == 0 || all.dtype == dtype; });
  if (all.scopes++ > 0) return;
  all.outside = c10::get_default_dtype_as_scalartype();
  all.dtype = dtype;
  set_default_dtype(dtype);
}

DefaultDtypeScope::~DefaultDtypeScope() {
  auto& all = InForce::get();
  std::unique_lock lock(all.mutex);
  --dtype_scopes;
  if (inner_before_) set_default_dtype(*inner_before_);
  if (inner_before_ || --all.scopes > 0) return;
  set_default_dtype(all.outside);
  all.ended.notify_all();
}

SurroundingsScope::SurroundingsScope(const Surroundings& then)
    : dtype_(then.default_dtype_), thread_(then.thread_), autocast_(then.autocast_) {
  refuse_changed_switches(then.ambient_);
  arithmetic_.set(then.ambient_);
  if (then.device_) device_.reset_device(*then.device_);
  put(then);
  if (autocast_) at::autocast::increment_nesting();
}

SurroundingsScope::~SurroundingsScope() {
  // The rerun's cached casts belong to its own graph.
  if (autocast_) {
    at::autocast::decrement_nesting();
    at::autocast::clear_cache();
  }
  put(now_);
}

void SurroundingsScope::put(const Surroundings& what) {
  for (size_t i = 0; i < what.autocast_dtypes_.size(); ++i)
    at::autocast::set_autocast_dtype(at::autocast::_AUTOCAST_SUPPORTED_DEVICES[i], what.autocast_dtypes_[i]);
  at::autocast::set_autocast_cache_enabled(what.autocast_cache_);
}

}  // namespace refrain::tape
