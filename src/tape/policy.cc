#include "tape/policy.h"

#include <c10/core/impl/LocalDispatchKeySet.h>

#include <optional>

#include "intercept/for_each_tensor.h"
#include "intercept/key.h"
#include "refrain/selective.h"
#include "tape/lifetime.h"
#include "tape/pin.h"
#include "tape/thread_state.h"

namespace refrain {
namespace {

TensorInfo info(const at::Tensor& tensor) { return {tensor.sizes().vec(), tensor.scalar_type(), tensor.device()}; }

}  // namespace

/// What an `OpContext` describes: an operator on the tape, and its results or the tensor that got a name.
class OpContext::Call {
 public:
  Call(const tape::Op& op, at::ArrayRef<c10::IValue> results, std::string_view checkpoint_name)
      : op_(op), results_(results), checkpoint_name_(checkpoint_name) {}

  const tape::OpTraits& traits() const { return *op_.traits; }
  tape::Region& region() const { return *op_.region; }
  std::string_view checkpoint_name() const { return checkpoint_name_; }

  /// Most policies read names only, so the rest is collected on demand.
  std::vector<at::Tensor> outputs() const {
    std::vector<at::Tensor> list;
    tape::for_each_tensor(results_.data(), results_.size(),
                          [&](const at::Tensor& tensor, size_t, int32_t) { list.push_back(tensor); });
    return list;
  }

  std::vector<TensorInfo> inputs() const {
    std::vector<TensorInfo> list;
    for (const auto& ref : op_.refs_in) {
      if (ref.arg == tape::ArgRef::kInside) break;  // the last ones
      if (ref.kept.defined()) {
        list.push_back(info(ref.kept));
      } else if (ref.value) {
        const auto& shape = ref.meta.sizes_and_strides;
        const auto* sizes = shape.sizes_data();
        list.push_back({{sizes, sizes + shape.size()}, ref.meta.dtype.toScalarType(), ref.device});
      }
    }
    return list;
  }

 private:
  const tape::Op& op_;
  const at::ArrayRef<c10::IValue> results_;
  const std::string_view checkpoint_name_;
};

int64_t TensorInfo::bytes() const {
  int64_t n = static_cast<int64_t>(c10::elementSize(dtype));
  for (const auto size : sizes) n *= size;
  return n;
}

std::string_view OpContext::name() const { return call_->traits().qualified_name; }
std::string_view OpContext::overload() const { return call_->traits().overload_name; }
bool OpContext::random() const { return call_->traits().random; }
int64_t OpContext::position() const { return call_->region().judged; }
int64_t OpContext::count(std::string_view key) const { return call_->region().counts[std::string(key)]++; }
std::vector<TensorInfo> OpContext::inputs() const { return call_->inputs(); }

std::vector<TensorInfo> OpContext::outputs() const {
  std::vector<TensorInfo> list;
  for (const auto& tensor : call_->outputs()) list.push_back(info(tensor));
  return list;
}

int64_t OpContext::output_bytes() const {
  int64_t sum = 0;
  for (const auto& tensor : call_->outputs()) sum += static_cast<int64_t>(tensor.nbytes());
  return sum;
}

std::string_view OpContext::scope() const { return module_scope(); }
std::string_view OpContext::checkpoint_name() const { return call_->checkpoint_name(); }

}  // namespace refrain

namespace refrain::tape {
namespace {

CheckpointPolicy ask(OpContext::Call& call) {
  const UnseenScope below;
  return (*call.region().policy)(OpContext(call));
}

/// An operator that stays on the tape while the lock is not held.
class RetainedOp {
 public:
  explicit RetainedOp(Op* op) : op_(op) { ++op->refs; }
  ~RetainedOp() {
    TapeLock lock;
    lock.release(op_);
  }
  RetainedOp(const RetainedOp&) = delete;
  RetainedOp& operator=(const RetainedOp&) = delete;

 private:
  Op* op_;
};

// Finds the value that recorded operators made of the bytes of `x`, or null.
Value* produced_value(TapeLock& lock, const at::Tensor& x) {
  if (!x.defined() || !has_plain_storage(x)) return nullptr;
  settle(lock, ThreadState::get());
  auto* value = find_value(lock, x.storage().unsafeGetStorageImpl());
  return value && value->producer ? value : nullptr;
}

}  // namespace

bool saves(CheckpointPolicy answer) {
  return answer == CheckpointPolicy::kMustSave || answer == CheckpointPolicy::kPreferSave;
}

CheckpointPolicy judge(const Op& op, const torch::jit::Stack& stack) {
  OpContext::Call call(op, torch::jit::last(stack, op.traits->num_returns), "");
  const auto answer = ask(call);
  ++op.region->judged;
  return answer;
}

}  // namespace refrain::tape

namespace refrain {

at::Tensor checkpoint_name(const at::Tensor& x, std::string_view name) {
  auto* region = tape::ThreadState::get().region;
  if (!region || !region->policy) return x;
  std::optional<tape::RetainedOp> pinned;
  tape::Op* op = nullptr;
  {
    tape::TapeLock lock;
    const auto* value = tape::produced_value(lock, x);
    // an outer region's results are subject to that region's policy
    if (!value || value->producer->region != region) return x;
    op = value->producer;
    pinned.emplace(op);
  }
  const c10::IValue result(x);
  OpContext::Call call(*op, result, name);
  const auto answer = tape::ask(call);
  const bool keeps = tape::saves(answer) || answer == CheckpointPolicy::kOffload;
  return keeps ? set_policy(x, answer) : x;
}

at::Tensor discard_output(const at::Tensor& y) {
  tape::TapeLock lock;
  if (auto* value = tape::produced_value(lock, y)) tape::let_discard(value);
  return y;
}

at::Tensor set_policy(const at::Tensor& x, CheckpointPolicy policy) {
  auto* region = tape::ThreadState::get().region;
  if (!region || !x.defined()) return x;
  std::shared_ptr<tape::Offloaded> offloaded;
  if (policy == CheckpointPolicy::kOffload && tape::has_plain_storage(x)) {
    const tape::Pinned bytes(x);
    offloaded = tape::store_or_keep(*region->offload, x.storage());
  }
  tape::TapeLock lock;
  auto* value = tape::produced_value(lock, x);
  if (!value) return x;
  value->saved &= policy != CheckpointPolicy::kOffload;
  if (offloaded)
    value->offloaded = std::move(offloaded);
  else if (tape::saves(policy) || policy == CheckpointPolicy::kOffload)
    tape::keep_marked(lock, value, region);
  else
    value->saved = false;
  return x;
}

}  // namespace refrain
