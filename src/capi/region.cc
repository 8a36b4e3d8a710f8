#include <memory>
#include <string>

#include "capi/errors.h"
#include "capi/handles.h"
#include "refrain/checkpoint.h"
#include "refrain/selective.h"

using namespace refrain;

struct refrain_region_t {
  explicit refrain_region_t(const CheckpointOptions& options) : scope(options) {}
  refrain::detail::RegionScope scope;
};

namespace {

CheckpointOptions options_of(const refrain_region_options_t& given) {
  CheckpointOptions options;
  options.preserve_rng_state(given.preserve_rng_state != 0);
  if (given.policy) options.policy(given.policy->policy);
  if (given.store) options.offload(given.store->store);
  if (given.offload_inputs != 0) options.offload_to_cpu(true);
  return options;
}

}  // namespace

refrain_region_t* refrain_region_open(const refrain_region_options_t* options) {
  return capi::made([&] { return new refrain_region_t(options ? options_of(*options) : CheckpointOptions()); });
}

int32_t refrain_region_add_input(refrain_region_t* region, void* tensor) {
  return capi::guarded([&] {
    capi::require(region, "refrain_region_add_input", "region");
    region->scope.add_inputs(capi::tensor_of(tensor, "refrain_region_add_input"));
  });
}

void refrain_region_close(refrain_region_t* region) { delete region; }

void refrain_region_close_failed(refrain_region_t* region) {
  try {
    const std::unique_ptr<refrain_region_t> closing(region);
    throw capi::CallbackFailed("");  // the region asks whether an exception passes through its scope
  } catch (const capi::CallbackFailed&) {
    // the caller has the real one
  }
}

int32_t refrain_is_checkpointing(void) { return is_checkpointing() ? 1 : 0; }
int32_t refrain_is_recomputing(void) { return is_recomputing() ? 1 : 0; }
int32_t refrain_set_checkpointing_enabled(int32_t value) { return set_checkpointing_enabled(value != 0) ? 1 : 0; }

int32_t refrain_checkpoint_name(void* tensor, const char* name) {
  return capi::guarded([&] {
    capi::require(name, "refrain_checkpoint_name", "name");
    (void)checkpoint_name(capi::tensor_of(tensor, "refrain_checkpoint_name"), name);
  });
}

int32_t refrain_set_policy(void* tensor, int32_t policy) {
  return capi::guarded([&] {
    if (policy < 0 || policy > static_cast<int32_t>(CheckpointPolicy::kOffload))
      throw InvalidArgument("[refrain::set_policy] `policy` is " + std::to_string(policy) + ", expected 0 to 4");
    (void)set_policy(capi::tensor_of(tensor, "refrain_set_policy"), static_cast<CheckpointPolicy>(policy));
  });
}
