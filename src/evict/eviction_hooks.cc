#include "evict/eviction_hooks.h"

#include <type_traits>

#include "evict/cap_state.h"
#include "evict/evict.h"
#include "evict/operands.h"
#include "evict/rest.h"
#include "tape/step_listener.h"
#include "tape/thread_state.h"

namespace refrain::tape {
namespace {

/// Has no state.
class EvictionHooks final : public CapHooks {
 public:
  void before(const OpTraits& op, const torch::jit::Stack& stack) override {
    if (auto* listener = step_listener()) listener->before(op, stack);
  }
  bool begin(TapeLock& lock, const OpTraits& op, Arguments& arguments, Operands& operands) override {
    return begin_operands(lock, op, arguments, operands) && !has_before_operator() && !step_listener();
  }
  void materialize(Operands& operands) override {
    materialize_operands(operands);
    tape::before_operator();
  }
  void begun(TapeLock& lock, const OpTraits& op, const Operands& operands) override {
    if (auto* listener = step_listener()) listener->begins(lock, op, operands.values);
  }
  void recorded(TapeLock& lock, Op& op) override {
    add_time(lock, op.forward_ns);
    op.forward_ns = least_ns(lock, op, op.forward_ns);
    if (auto* listener = step_listener()) listener->recorded(lock, op);
  }
  void made(TapeLock& lock, Value* value) override { note_made(lock, value); }
  void ended(TapeLock& lock) override {
    if (auto* listener = step_listener()) listener->ends(lock);
  }
  void release(TapeLock& lock, Operands& operands) override { release_operands(lock, operands); }
  void left(const Operands& operands) noexcept override { ThreadState::get().operands_of = operands.outer; }

  void evicted_died(TapeLock& lock, Value* value) override {
    end_eviction(lock, value);
    value->residency = Residency::kOverwritten;
  }
  void materialize_dependents(Value* source) override { tape::materialize_dependents(source); }
  void pin(const at::Tensor& tensor, int by) override { tape::pin(tensor, by); }

  void accumulated(const at::Tensor& parameter) override { note_gradient(parameter); }
  void wake() override { tape::wake(); }
  void listening() override { rest_under_listener(); }
  void step_ended() override {
    if (auto* listener = step_listener()) listener->step_ended();
    end_step();
  }

  void before_pass() override { tape::before_pass(); }
  void before_replay() override { tape::before_operator(); }
  bool put_back(TapeLock& lock, Value* value, c10::Storage& bytes) override {
    return tape::put_back(lock, value, bytes);
  }
  void pass_ended(TapeLock& lock, int64_t ns, int64_t operators, int64_t demand) override {
    add_pass(lock, {demand, ns});
    cap_counters().recomputes += operators;
    cap_counters().recompute_ns += ns;
  }
};

}  // namespace

void install_cap_hooks() {
  static EvictionHooks hooks;  // with a trivial destructor: storages of static tensors still die at exit
  static_assert(std::is_trivially_destructible_v<EvictionHooks>);
  Tape::get().cap_hooks.store(&hooks);
}

}  // namespace refrain::tape
