#include "intercept/rng.h"

#include <ATen/Context.h>
#include <ATen/core/ivalue.h>

#include <cstring>
#include <optional>

#include "base/fork.h"
#include "intercept/storage_copy.h"

namespace refrain::tape {
namespace {

constexpr size_t kMaxPatches = 16;

// The words in which `state` differs from `base`, or nothing if they are too many.
std::optional<std::vector<RngState::Patch>> difference(const at::Tensor& base, const at::Tensor& state) {
  const size_t size = state.nbytes();
  if (base.nbytes() != size || size % sizeof(uint64_t) != 0) return std::nullopt;
  const auto* old_bytes = static_cast<const char*>(base.const_data_ptr());
  const auto* new_bytes = static_cast<const char*>(state.const_data_ptr());
  std::vector<RngState::Patch> patches;
  for (size_t at = 0; at < size; at += sizeof(uint64_t)) {
    RngState::Patch patch{static_cast<uint32_t>(at), 0};
    std::memcpy(&patch.word, new_bytes + at, sizeof(uint64_t));
    if (std::memcmp(old_bytes + at, &patch.word, sizeof(uint64_t)) == 0) continue;
    if (patches.size() == kMaxPatches) return std::nullopt;
    patches.push_back(patch);
  }
  return patches;
}

at::Tensor state_of(at::Generator generator) {
  std::lock_guard guard(generator.mutex());
  return generator.get_state();
}

}  // namespace

OrderedMutex& rng_mutex() {
  static auto& mutex = make_mutex_for_forks(LockOrder::kGenerator);
  return mutex;
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

at::Tensor RngState::state() const {
  if (patches.empty()) return base;
  const BelowTape below;
  auto state = base.clone();
  auto* bytes = static_cast<char*>(state.mutable_data_ptr());
  for (const auto& patch : patches) std::memcpy(bytes + patch.offset, &patch.word, sizeof(uint64_t));
  return state;
}

void RngState::set() const {
  const auto bytes = state();
  auto target = generator;
  std::lock_guard guard(target.mutex());
  target.set_state(bytes);
}

std::shared_ptr<const RngState> read_rng(const at::Generator& generator) {
  static thread_local std::weak_ptr<const RngState> last;
  auto state = state_of(generator);
  if (auto shared = last.lock(); shared && shared->generator == generator) {
    if (auto patches = difference(shared->base, state)) {
      auto made = std::make_shared<const RngState>(RngState{generator, shared->base, std::move(*patches)});
      last = made;
      return made;
    }
  }
  auto made = std::make_shared<const RngState>(RngState{generator, std::move(state), {}});
  last = made;
  return made;
}

bool has_moved(const RngState& before) {
  const auto now = difference(before.state(), state_of(before.generator));
  return !now || !now->empty();
}

RngReplayScope::RngReplayScope(const RngState& recorded)
    : lock_(rng_mutex()), generator_(recorded.generator), present_(state_of(generator_)) {
  recorded.set();
}

RngReplayScope::~RngReplayScope() {
  std::lock_guard guard(generator_.mutex());
  generator_.set_state(present_);
}

}  // namespace refrain::tape
