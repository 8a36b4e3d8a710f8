#include "intercept/key.h"
#include "refrain/checkpoint.h"
#include "refrain/error.h"
#include "rerun/rerun.h"
#include "tape/engine.h"
#include "tape/region.h"
#include "tape/thread_state.h"

namespace refrain::tape {
namespace {

// --- settings -----------------------------------------------------------------------------------------------------------

/// A setting with an override of the process (-1: none), and one of the thread, which has precedence.
struct Override {
  std::atomic<int> process{-1};

  std::optional<bool> set(std::optional<bool> value) {
    const int before = process.exchange(value ? int{*value} : -1);
    return before < 0 ? std::nullopt : std::optional<bool>(before == 1);
  }
  bool decide(std::optional<bool> thread, bool option) const {
    if (thread) return *thread;
    const int all = process.load(std::memory_order_relaxed);
    return all < 0 ? option : all == 1;
  }
};

Override early_stop_override, debug_override;

}  // namespace
}  // namespace refrain::tape

namespace refrain {

std::optional<bool> set_early_stop(std::optional<bool> value) { return tape::early_stop_override.set(value); }
std::optional<bool> set_debug(std::optional<bool> value) { return tape::debug_override.set(value); }

EarlyStopGuard::EarlyStopGuard(bool value) { tape::ThreadState::get().early_stop.set(this, value); }
EarlyStopGuard::~EarlyStopGuard() { tape::ThreadState::get().early_stop.end(this); }
DebugGuard::DebugGuard(bool value) { tape::ThreadState::get().debug.set(this, value); }
DebugGuard::~DebugGuard() { tape::ThreadState::get().debug.end(this); }

}  // namespace refrain

namespace refrain::detail {

bool reruns(const CheckpointOptions& options) {
  const auto* saver = tape::ThreadState::get().saver;
  const bool in_rerun = saver && saver->is_rerun();
  if (options.recompute_mode() == RecomputeMode::kReplayOperators && (options.policy() || !in_rerun)) return false;
  return !tape::plain_call();
}

struct RerunScope::State {
  std::shared_ptr<tape::Rerun> rerun;
  bool entered = false;
  std::shared_ptr<void> forward_scope;
};

RerunScope::RerunScope(const CheckpointOptions& options) : state_(std::make_unique<State>()) {
  if (options.policy())
    throw InvalidArgument(
        "[refrain::checkpoint] a policy chooses among recorded operators, and recompute_mode(kRerunFunction) records none. Use "
        "recompute_mode(kReplayOperators) with the policy, or leave the policy out.");
  tape::refuse_unsupported_modes();
  tape::install();
  state_->rerun = std::make_shared<tape::Rerun>(
      options, tape::early_stop_override.decide(tape::ThreadState::get().early_stop.get(), options.early_stop()),
      tape::debug_override.decide(tape::ThreadState::get().debug.get(), options.debug()));
  if (const auto& context_fn = options.context_fn())
    std::tie(state_->rerun->forward_scope, state_->rerun->rerun_scope) = context_fn();
}

void RerunScope::save_input(const at::Tensor& tensor) { state_->rerun->add_input(tensor); }

void RerunScope::run_whole() { state_->rerun->run_whole(); }

void RerunScope::save_generator(const at::Generator& generator) {
  if (generator.defined()) state_->rerun->draws().add_generator(generator);
}

void RerunScope::enter(std::function<void(const NextInput&)> again) {
  auto& rerun = *state_->rerun;
  rerun.again = std::move(again);
  if (rerun.forward_scope) state_->forward_scope = rerun.forward_scope();
  auto* const draws = rerun.draws().any() ? &rerun.draws() : nullptr;
  tape::ThreadState::get().opened(
      {.owner = state_.get(), .saver = &rerun, .trace = rerun.trace(), .draws = draws, .is_rerun = true});
  if (rerun.trace() || draws) tape::set_tape_included(true);
  state_->entered = true;
}

void RerunScope::refuse_uncopyable() {
  throw InvalidArgument(
      "[refrain::checkpoint] recompute_mode(kRerunFunction) keeps copies of the function and its arguments for the "
      "rerun, and one of them cannot be copied. Pass it by std::shared_ptr, or use recompute_mode(kReplayOperators), "
      "which keeps none.");
}

void refuse_base_class() {
  throw InvalidArgument(
      "[refrain::checkpoint] recompute_mode(kRerunFunction) keeps copies of the function and its arguments for the "
      "rerun, and one of them is an object of a derived class behind a reference to its base class, of which a copy "
      "would be another object. Pass it by std::shared_ptr, or use recompute_mode(kReplayOperators), which keeps "
      "none.");
}

RerunScope::~RerunScope() {
  if (!state_->entered) return;
  if (const auto& work = state_->rerun->work) work->forward_ended();
  auto& thread = tape::ThreadState::get();
  thread.closed(state_.get());
  state_->rerun->draws().ended(thread.open);
  tape::leave_dispatch();
  state_->rerun->forward_ended();
}

}  // namespace refrain::detail
