#include "tape/rng.h"

#include <ATen/Context.h>
#include <ATen/core/ivalue.h>

#include <cstring>
#include <optional>

namespace refrain::tape {
namespace {

bool same_bytes(const at::Tensor& a, const at::Tensor& b) {
  return a.nbytes() == b.nbytes() && std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

at::Tensor state_of(at::Generator generator) {
  std::lock_guard guard(generator.mutex());
  return generator.get_state();
}

}  // namespace

std::mutex& rng_mutex() {
  static auto* mutex = new std::mutex;
  return *mutex;
}

at::Generator generator_of(const torch::jit::Stack& stack, size_t num_args) {
  std::optional<c10::Device> device;
  for (size_t i = stack.size() - num_args; i < stack.size(); ++i) {
    const auto& value = stack[i];
    if (value.isGenerator()) return value.toGenerator();
    if (device) continue;
    if (value.isTensor() && value.toTensor().defined())
      device = value.toTensor().device();
    else if (value.isTensorList() && !value.toTensorVector().empty())
      device = value.toTensorVector()[0].device();
    else if (value.isDevice())
      device = value.toDevice();
  }
  if (!device) device = c10::kCPU;
  if (device->type() == c10::kMeta) return {};
  return at::globalContext().defaultGenerator(*device);
}

std::shared_ptr<const RngState> read_rng(const at::Generator& generator) {
  static thread_local std::weak_ptr<const RngState> last;
  auto state = state_of(generator);
  if (auto shared = last.lock(); shared && shared->generator == generator && same_bytes(shared->state, state))
    return shared;
  auto made = std::make_shared<const RngState>(RngState{generator, std::move(state)});
  last = made;
  return made;
}

bool has_moved(const RngState& before) { return !same_bytes(before.state, state_of(before.generator)); }

RngReplayScope::RngReplayScope(const RngState& recorded)
    : lock_(rng_mutex()), generator_(recorded.generator), present_(state_of(generator_)) {
  std::lock_guard guard(generator_.mutex());
  generator_.set_state(recorded.state);
}

RngReplayScope::~RngReplayScope() {
  std::lock_guard guard(generator_.mutex());
  generator_.set_state(present_);
}

}  // namespace refrain::tape
