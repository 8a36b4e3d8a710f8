/// Typed kernels for the operators that models call most, beside the boxed fallback for all: LibTorch's own boxing and
/// unboxing allocates twice a call and costs as much as the tape. The tape does the same in both.

#include "tape/typed_ops.h"

#include <tuple>
#include <type_traits>
#include <unordered_set>
#include <vector>

#include "intercept/key.h"
#include "tape/recorder.h"
#include "tape/thread_state.h"
#include "tape/typed_op_list.h"

namespace refrain::tape {
namespace {

/// An empty stack whose memory the next operator of this thread reuses.
class StackLease {
 public:
  StackLease() : thread_(ThreadState::get()) {
    if (thread_.stacks_in_use == thread_.stacks.size()) {
      thread_.stacks.push_back(std::make_unique<torch::jit::Stack>());
      thread_.stacks.back()->reserve(16);
    }
    stack_ = thread_.stacks[thread_.stacks_in_use++].get();
  }
  ~StackLease() {
    stack_->clear();
    --thread_.stacks_in_use;
  }
  StackLease(const StackLease&) = delete;
  StackLease& operator=(const StackLease&) = delete;
  torch::jit::Stack& operator*() { return *stack_; }

 private:
  ThreadState& thread_;
  torch::jit::Stack* stack_;
};

template <typename R>
void push_results(torch::jit::Stack& stack, R&& results) {
  stack.emplace_back(std::forward<R>(results));
}
template <typename... R>
void push_results(torch::jit::Stack& stack, std::tuple<R...>&& results) {
  std::apply([&](auto&&... each) { (stack.emplace_back(std::move(each)), ...); }, std::move(results));
}

template <typename R>
struct TakeResults {
  static R from(torch::jit::Stack& stack) { return std::move(stack[0]).to<R>(); }
};
template <typename... R>
struct TakeResults<std::tuple<R...>> {
  static std::tuple<R...> from(torch::jit::Stack& stack) { return from(stack, std::index_sequence_for<R...>()); }

 private:
  template <size_t... I>
  static std::tuple<R...> from(torch::jit::Stack& stack, std::index_sequence<I...>) {
    return {std::move(stack[I]).to<R>()...};
  }
};

template <typename Op>
const c10::OperatorHandle& handle() {
  static const auto handle = c10::Dispatcher::singleton().findSchemaOrThrow(Op::name, Op::overload_name);
  return handle;
}

template <typename Op, typename Schema>
struct Typed;

template <typename Op, typename R, typename... A>
struct Typed<Op, R(A...)> {
  static R call(c10::DispatchKeySet keys, A... args) {
    if (sees_nothing()) return below(keys, args...);
    const auto& traits = op_traits(handle<Op>());
    if (traits.view_only && !looks_at_views()) return below(keys, args...);
    StackLease lease;
    auto& stack = *lease;
    (stack.emplace_back(args), ...);
    look_at(traits, keys, &stack, [&] {
      decltype(auto) results = below(keys, args...);
      stack.clear();
      push_results(stack, std::forward<decltype(results)>(results));
    });
    if constexpr (std::is_reference_v<R>)
      return std::get<0>(std::forward_as_tuple(args...));  // in place
    else
      return TakeResults<R>::from(stack);
  }

 private:
  static R below(c10::DispatchKeySet keys, A... args) {
    const UnseenScope below;
    return Op::redispatch(keys & kBelowTape, args...);
  }
};

template <typename Op>
void add(torch::Library& library) {
  const std::string overload = Op::overload_name;
  library.impl((Op::name + (overload.empty() ? overload : "." + overload)).c_str(),
               TORCH_FN((Typed<Op, typename Op::schema>::call)));
}

}  // namespace

void add_typed_ops(torch::Library& library, const std::unordered_set<c10::OperatorName>& except) {
#define REFRAIN_ADD(op) \
  if (!except.contains({at::_ops::op::name, at::_ops::op::overload_name})) add<at::_ops::op>(library);
  REFRAIN_TYPED_OPS(REFRAIN_ADD)
#undef REFRAIN_ADD
}

bool is_typed_op(const c10::OperatorName& name) {
  static const std::unordered_set<c10::OperatorName> names{
#define REFRAIN_NAME(op) {at::_ops::op::name, at::_ops::op::overload_name},
      REFRAIN_TYPED_OPS(REFRAIN_NAME)
#undef REFRAIN_NAME
  };
  return names.contains(name);
}

}  // namespace refrain::tape
