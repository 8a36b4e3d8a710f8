#include "tape/surroundings.h"

#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/autocast_mode.h>
#include <c10/core/DefaultDtype.h>

#include "refrain/error.h"

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

void Surroundings::add_generator(const at::Generator& generator) {
  std::lock_guard lock(rng_mutex());
  generators_.push_back(read_rng(generator));
}

void Surroundings::add_default_generators() {
  add_generator(at::globalContext().defaultGenerator(at::kCPU));
  if (!device_) return;
  const auto& hooks = at::globalContext().getAcceleratorHooksInterface(device_->type());
  for (at::DeviceIndex i = 0; i < hooks.deviceCount(); ++i)
    if (hooks.hasPrimaryContext(i)) add_generator(at::globalContext().defaultGenerator({device_->type(), i}));
}

namespace {

// The default dtype apart, which is put in force.
void refuse_changed_switches(const Ambient& then) {
  if (const auto now = Ambient::now(); !then.same_switches(now))
    throw CheckpointError("[refrain::checkpoint] cannot call the function again as it ran in forward: " + describe_change(then, now) +
                          ". Restore the setting before backward.");
}

}  // namespace

SurroundingsScope::SurroundingsScope(const Surroundings& then) : thread_(then.thread_), autocast_(then.autocast_) {
  refuse_changed_switches(then.ambient_);
  arithmetic_.set(then.ambient_);
  if (then.device_) device_.reset_device(*then.device_);
  {
    std::lock_guard lock(rng_mutex());
    // As wholes, and all before the first is set: putting them back must need no memory.
    std::vector<RngState> wholes;
    for (const auto& state : then.generators_) {
      generators_now_.push_back({state->generator, read_rng(state->generator)->state(), {}});
      wholes.push_back({state->generator, state->state(), {}});
    }
    for (const auto& state : wholes) state.set();
  }
  put(then);
  if (autocast_) at::autocast::increment_nesting();
}

SurroundingsScope::~SurroundingsScope() {
  // What it cached belongs to the graph of this call.
  if (autocast_) {
    at::autocast::decrement_nesting();
    at::autocast::clear_cache();
  }
  put(now_);
  std::lock_guard lock(rng_mutex());
  for (const auto& state : generators_now_) state.set();
}

void SurroundingsScope::put(const Surroundings& what) {
  for (size_t i = 0; i < what.autocast_dtypes_.size(); ++i)
    at::autocast::set_autocast_dtype(at::autocast::_AUTOCAST_SUPPORTED_DEVICES[i], what.autocast_dtypes_[i]);
  at::autocast::set_autocast_cache_enabled(what.autocast_cache_);
  if (c10::get_default_dtype_as_scalartype() != what.default_dtype_)
    c10::set_default_dtype(c10::scalarTypeToTypeMeta(what.default_dtype_));
}

}  // namespace refrain::tape
