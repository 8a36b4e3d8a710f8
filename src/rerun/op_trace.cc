#include "rerun/op_trace.h"

#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/csrc/autograd/graph_task.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "intercept/covers_storage.h"
#include "intercept/for_each_tensor.h"
#include "tape/cap.h"
#include "tape/thread_state.h"

namespace refrain::tape {
namespace {

constexpr uint64_t kInputs = uint64_t{1} << 62, kResults = uint64_t{1} << 63;

class Hash {
 public:
  Hash& operator<<(uint64_t word) {
    value_ = (value_ ^ word) * 0x9e3779b97f4a7c15U;
    value_ ^= value_ >> 29;
    return *this;
  }
  Hash& operator<<(double number) { return *this << std::bit_cast<uint64_t>(number); }
  Hash& operator<<(const std::string& text) { return *this << std::hash<std::string>()(text); }
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0x243f6a8885a308d3U;
};

// Arguments that cannot be compared (generators, objects) count as the same.
void add(Hash& hash, const c10::IValue& value) {
  if (value.isTensor() || value.isGenerator()) return;
  if (value.isNone()) {
    hash << uint64_t{1};
  } else if (value.isInt()) {
    hash << uint64_t{2} << static_cast<uint64_t>(value.toInt());
  } else if (value.isDouble()) {
    hash << uint64_t{3} << value.toDouble();
  } else if (value.isBool()) {
    hash << (uint64_t{4} + value.toBool());
  } else if (value.isComplexDouble()) {
    hash << uint64_t{6} << value.toComplexDouble().real() << value.toComplexDouble().imag();
  } else if (value.isString()) {
    hash << uint64_t{7} << value.toStringRef();
  } else if (value.isDevice()) {
    hash << uint64_t{8} << value.toDevice().str();
  } else if (value.isList()) {
    const auto list = value.toListRef();
    hash << uint64_t{9} << list.size();
    for (const auto& element : list) add(hash, element);
  } else {
    hash << uint64_t{10};
  }
}

// 64 elements of a large tensor, all of a small one. 0 for bytes that are elsewhere.
uint64_t sample(const at::Tensor& tensor) {
  auto* storage = tensor.storage().unsafeGetStorageImpl();
  if (!storage->device().is_cpu() || is_capped()) return 0;  // a cap may evict them meanwhile
  const auto* bytes =
      static_cast<const char*>(storage->_mutable_data_ptr_no_checks().get());  // without telling the barrier
  const auto elements = tensor.numel();
  const size_t item = tensor.itemsize();
  if (!bytes || elements == 0) return 0;
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  const auto count = std::min<int64_t>(elements, 64);
  Hash hash;
  for (int64_t i = 0; i < count; ++i) {
    auto rest = elements / count * i, at = tensor.storage_offset();
    for (size_t d = sizes.size(); d-- > 0;) {
      at += rest % sizes[d] * strides[d];
      rest /= sizes[d];
    }
    uint64_t words[2] = {0, 0};
    std::memcpy(words, bytes + static_cast<size_t>(at) * item, std::min(item, sizeof words));
    hash << words[0] << words[1];
  }
  return hash.value() | 1;
}

bool is_empty_list(const c10::IValue& value) { return value.isList() && value.toListRef().empty(); }

}  // namespace

std::string describe(at::ScalarType dtype, at::IntArrayRef sizes, at::Device device) {
  auto text = fmt::format("{}[{}]", c10::toString(dtype), fmt::join(sizes.begin(), sizes.end(), ", "));
  if (!device.is_cpu()) text += " on " + device.str();
  return text;
}

UntracedScope::UntracedScope() : trace_(std::exchange(ThreadState::get().trace, nullptr)) {}
UntracedScope::~UntracedScope() { ThreadState::get().trace = trace_; }

bool OpTrace::is_inside() const { return torch::autograd::get_current_graph_task_id() != graph_task_; }

void OpTrace::start(const OpTrace* first) {
  graph_task_ = torch::autograd::get_current_graph_task_id();
  first_ = first;
}

void OpTrace::add_input(const at::Tensor& tensor) {
  // Two that are views of one in the first run may be two copies in the second.
  uint64_t label = first_ ? first_->input_labels_.at(input_labels_.size()) : kInputs + input_labels_.size();
  if (tensor.defined() && has_plain_storage(tensor)) {
    auto& known = know(tensor);
    if (known.outside) known.label = label;
    known.outside = false;
    label = known.label;
  }
  input_labels_.push_back(label);
}

OpTrace::Known& OpTrace::know(const at::Tensor& tensor) {
  auto* storage = tensor.storage().unsafeGetStorageImpl();
  const auto found = known_.find(storage);
  if (found != known_.end()) return found->second;
  Known known{tensor.storage().getWeakStorageImpl(), c10::VariableVersion(c10::VariableVersion::DISABLED), 0};
  if (!tensor.is_inference()) {
    known.counter = tensor.unsafeGetTensorImpl()->version_counter();
    known.version = known.counter.current_version();
  }
  // A function may capture what it is given, and be given a copy the second time.
  if (first_) {
    const auto before = first_->known_.find(storage);
    if (before != first_->known_.end() && before->second.label < kResults) known.label = before->second.label;
  }
  return known_.emplace(storage, std::move(known)).first->second;
}

uint64_t OpTrace::note_tensor(const OpTraits& op, const at::Tensor& tensor, size_t number, size_t position,
                              const c10::IValue* arguments) {
  auto& known = know(tensor);
  const auto* write = write_trait(op, position, arguments);
  const bool overwrites = write && (write->replay == ReplayArg::kWriteOnly || (op.full_overwrite && position == 0) ||
                                    op.handle.schema().arguments()[position].is_out());
  // An operator that only updates it in place, as a counter, hands nothing on; who reads it afterwards does.
  const bool updates = write && (op.pure_inplace || write->replay != ReplayArg::kBytes);
  const auto view =
      (Hash() << static_cast<uint64_t>(tensor.storage_offset()) << static_cast<uint64_t>(tensor.numel())).value();
  if (known.label < kResults && known.old_bytes && known.read != view && !overwrites && !updates && !op.only_metadata &&
      !op.view_only) {
    known.read = view;
    reads_.push_back(
        {tensor.storage().unsafeGetStorageImpl(), known.version, sample(tensor), calls_.size() - 1, number});
  }
  known.written |= write != nullptr;
  if (overwrites && covers_storage(tensor)) known.old_bytes = false;
  return known.label;
}

void OpTrace::before(const OpTraits& op, const torch::jit::Stack& stack) {
  if (op.cast || is_inside()) return;
  calls_.push_back({&op, 0, 0, 0, 0});
  const auto* arguments = stack.data() + (stack.size() - op.num_args);
  Hash tensors, constants, identities, gradients;
  std::vector<std::string> texts;
  gradients << uint64_t{c10::GradMode::is_enabled()};
  for (size_t i = 0; i < op.num_args; ++i)
    if (!arguments[i].isTensor() &&
        !(arguments[i].isList() && !is_empty_list(arguments[i]) && arguments[i].toListRef()[0].isTensor()))
      add(constants << i, arguments[i]);
  size_t number = 0;
  for_each_tensor(arguments, op.num_args, [&](const at::Tensor& tensor, size_t position, int32_t element) {
    ++number;
    tensors << position << static_cast<uint64_t>(element) << static_cast<uint64_t>(tensor.scalar_type())
            << static_cast<uint64_t>(tensor.device().type()) << static_cast<uint64_t>(tensor.device().index())
            << (uint64_t{tensor.is_conj()} << 1 | uint64_t{tensor.is_neg()});
    for (const auto size : tensor.sizes()) tensors << static_cast<uint64_t>(size);
    gradients << uint64_t{tensor.requires_grad()};
    if (has_plain_storage(tensor)) {
      for (const auto stride : tensor.strides()) tensors << static_cast<uint64_t>(stride);
      tensors << static_cast<uint64_t>(tensor.storage_offset());
      identities << note_tensor(op, tensor, number, position, arguments);
    }
    if (texts_) texts.push_back(describe(tensor.scalar_type(), tensor.sizes(), tensor.device()));
  });
  auto& call = calls_.back();
  call.tensors = tensors.value();
  call.constants = constants.value();
  call.identities = identities.value();
  call.gradients = gradients.value();
  if (texts_) text_.push_back(fmt::format("{}({})", op.name(), fmt::join(texts, ", ")));
}

void OpTrace::after(const OpTraits& op, const torch::jit::Stack& stack) {
  if (op.cast || is_inside() || calls_.empty()) return;
  uint64_t label = kResults + (calls_.size() << 16);
  for_each_tensor(stack.data() + (stack.size() - op.num_returns), op.num_returns,
                  [&](const at::Tensor& tensor, size_t, int32_t) {
                    ++label;
                    if (!has_plain_storage(tensor)) return;
                    const auto size = known_.size();
                    auto& known = know(tensor);
                    if (known_.size() == size) return;  // an argument of its
                    known.outside = false;
                    known.label = label;
                  });
}

std::string OpTrace::from_outside(const Read& read) const {
  return fmt::format("an argument of operator {}, `{}`, which the function reads from outside, ", read.call,
                     name(read.call));
}

std::string OpTrace::changed_since(const OpTrace& other) const {
  for (const auto& read : other.reads_) {
    const auto found = known_.find(read.storage);
    if (found == known_.end()) continue;
    const auto& mine = found->second;
    if (mine.label >= kResults)
      return other.from_outside(read) + "is a result of the first call that the function has kept";
    if (mine.outside && mine.written)
      return other.from_outside(read) + "was changed since by the function itself: the first call wrote to it";
    if (mine.outside && read.version != mine.version)
      return other.from_outside(read) +
             fmt::format("was changed since: it is at version {}, expected version {}", read.version, mine.version);
  }
  return {};
}

std::string OpTrace::other_values(const OpTrace& other) const {
  const auto place = [](const Read& read) { return std::pair(read.call, read.tensor); };
  auto found = reads_.begin();
  for (const auto& theirs : other.reads_) {
    while (found != reads_.end() && place(*found) < place(theirs)) ++found;
    if (found == reads_.end()) break;
    const auto& mine = *found;
    if (place(mine) != place(theirs))
      continue;  // two views of one storage may be two copies now, of which both are read
    if (mine.sample == theirs.sample || mine.sample == 0 || theirs.sample == 0) continue;
    return other.from_outside(theirs) + (mine.storage == theirs.storage
                                             ? "was changed since, without a new version: through `data()` or a pointer"
                                             : "is another tensor than in forward, with other values");
  }
  return {};
}

std::string OpTrace::difference(const OpTrace& other, bool ends_early, bool goes_on) const {
  const size_t common = std::min(calls_.size(), other.calls_.size());
  for (size_t i = 0; i < common; ++i) {
    const auto &mine = calls_[i], &theirs = other.calls_[i];
    if (mine.op != theirs.op)
      return fmt::format("operator {} was `{}` in forward and `{}` in the rerun", i, name(i), other.name(i));
    const char* what = mine.tensors != theirs.tensors       ? "tensors of other sizes, strides or dtypes"
                       : mine.constants != theirs.constants ? "other arguments that are not tensors"
                       : mine.gradients != theirs.gradients
                           ? "other tensors that require gradients, or another gradient mode,"
                       : mine.identities != theirs.identities ? "results of other operators, or other inputs,"
                                                              : nullptr;
    if (what)
      return fmt::format("operator {}, `{}`, had {} in the rerun{}", i, name(i), what,
                         texts_ ? fmt::format(": `{}`", other.name(i)) : std::string());
  }
  if ((!goes_on && other.calls_.size() > common) || (!ends_early && calls_.size() > common))
    return fmt::format("{} operators ran in forward, {} in the rerun", calls_.size(), other.calls_.size());
  return {};
}

std::string OpTrace::text() const {
  std::string lines;
  for (size_t i = 0; i < calls_.size(); ++i) lines += fmt::format("  {:4} {}\n", i, name(i));
  return lines;
}

}  // namespace refrain::tape
