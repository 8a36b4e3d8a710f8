#include "tape/policy.h"

#include <c10/core/impl/LocalDispatchKeySet.h>

#include "refrain/selective.h"
#include "tape/tape.h"

namespace refrain {
namespace {

std::string& scope_path() {
  static thread_local std::string path;
  return path;
}

TensorInfo info(const at::Tensor& tensor) { return {tensor.sizes().vec(), tensor.scalar_type(), tensor.device()}; }

}  // namespace

/// What an `OpContext` looks at: an operator on the tape, and its results or the tensor that got a name.
class OpContext::Call {
 public:
  Call(const tape::Op& op, std::vector<at::Tensor> results, std::string_view checkpoint_name)
      : op_(op), results_(std::move(results)), checkpoint_name_(checkpoint_name) {}

  const tape::OpTraits& traits() const { return *op_.traits; }
  tape::Region& region() const { return *op_.region; }
  const std::vector<at::Tensor>& results() const { return results_; }
  std::string_view checkpoint_name() const { return checkpoint_name_; }

  std::vector<TensorInfo> inputs() const {
    std::vector<TensorInfo> list;
    for (const auto& ref : op_.refs_in) {
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
  const std::vector<at::Tensor> results_;
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
  for (const auto& tensor : call_->results()) list.push_back(info(tensor));
  return list;
}

int64_t OpContext::output_bytes() const {
  int64_t sum = 0;
  for (const auto& tensor : call_->results()) sum += static_cast<int64_t>(tensor.nbytes());
  return sum;
}

std::string_view OpContext::scope() const { return scope_path(); }
std::string_view OpContext::checkpoint_name() const { return call_->checkpoint_name(); }

ModuleScope::ModuleScope(std::string_view name) : length_(scope_path().size()) {
  auto& path = scope_path();
  if (!path.empty()) path += '.';
  path += name;
}

ModuleScope::~ModuleScope() { scope_path().resize(length_); }

}  // namespace refrain

namespace refrain::tape {
namespace {

bool saves(CheckpointPolicy answer) {
  return answer == CheckpointPolicy::kMustSave || answer == CheckpointPolicy::kPreferSave;
}

bool ask(OpContext::Call& call) {
  c10::impl::ExcludeDispatchKeyGuard below(c10::DispatchKey::Fake);
  return saves((*call.region().policy)(OpContext(call)));
}

/// An operator that stays on the tape while the lock is not held.
class Pinned {
 public:
  explicit Pinned(Op* op) : op_(op) { ++op->refs; }
  ~Pinned() {
    TapeLock lock;
    lock.release(op_);
  }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;

 private:
  Op* op_;
};

// What recorded operators of the open region made of the bytes of `x`, or null.
Op* producer_of(TapeLock& lock, const at::Tensor& x, const Region* region) {
  if (!region || !x.defined() || !has_plain_storage(x)) return nullptr;
  settle(lock, ThreadState::get());
  const auto* value = find_value(lock, x.storage().unsafeGetStorageImpl());
  return value && !value->storage.expired() ? value->producer : nullptr;
}

void keep(const at::Tensor& x, Region* region) {
  TapeLock lock;
  settle(lock, ThreadState::get());
  auto* value = find_value(lock, x.storage().unsafeGetStorageImpl());
  if (value && value->producer) keep_marked(lock, value, region);
}

}  // namespace

bool wants_saved(const Op& op, const torch::jit::Stack& stack) {
  std::vector<at::Tensor> results;
  for (size_t i = stack.size() - op.traits->num_returns; i < stack.size(); ++i) {
    if (stack[i].isTensor()) {
      if (stack[i].toTensor().defined()) results.push_back(stack[i].toTensor());
    } else if (stack[i].isTensorList()) {
      for (const at::Tensor& tensor : stack[i].toTensorVector())
        if (tensor.defined()) results.push_back(tensor);
    }
  }
  OpContext::Call call(op, std::move(results), "");
  const bool saved = ask(call);
  ++op.region->judged;
  return saved;
}

}  // namespace refrain::tape

namespace refrain {

at::Tensor checkpoint_name(const at::Tensor& x, std::string_view name) {
  auto* region = tape::ThreadState::get().region;
  if (!region || !region->policy) return x;
  std::optional<tape::Pinned> pinned;
  tape::Op* op = nullptr;
  {
    tape::TapeLock lock;
    op = tape::producer_of(lock, x, region);
    if (!op) return x;
    pinned.emplace(op);
  }
  OpContext::Call call(*op, {x}, name);
  // an operator of an outer region keeps its own region's policy: the innermost open one is asked here
  if (op->region == region && tape::ask(call)) tape::keep(x, region);
  return x;
}

at::Tensor mark(const at::Tensor& x, CheckpointPolicy policy) {
  auto* region = tape::ThreadState::get().region;
  if (!region || !x.defined() || !tape::has_plain_storage(x)) return x;
  if (tape::saves(policy)) {
    tape::keep(x, region);
  } else {
    tape::TapeLock lock;
    tape::settle(lock, tape::ThreadState::get());
    auto* value = tape::find_value(lock, x.storage().unsafeGetStorageImpl());
    if (value && value->producer) value->saved = false;
  }
  return x;
}

}  // namespace refrain
