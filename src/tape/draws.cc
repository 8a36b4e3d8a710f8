#include "tape/draws.h"

#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>

#include <fmt/format.h>

#include <algorithm>

#include "intercept/storage_copy.h"
#include "refrain/torch_error.h"

namespace refrain::tape {
namespace {

bool same(const RngState& a, const RngState& b) {
  if (a.base.is_same(b.base) && a.patches.size() == b.patches.size() &&
      std::equal(a.patches.begin(), a.patches.end(), b.patches.begin(),
                 [](const auto& x, const auto& y) { return x.offset == y.offset && x.word == y.word; }))
    return true;
  const BelowTape below;
  return a.state().equal(b.state());
}

/// Generators that reruns have set: the first rerun saves their states, the last restores them, in whatever order they
/// end.
struct InForce {
  int64_t calls = 0;
  std::vector<RngState> saved;  ///< as wholes: restoring them must not allocate
  static InForce& get() {
    static auto* const all = new InForce;
    return *all;
  }
};

// Guarded by `rng_mutex`.
uint64_t all_draws = 0;  ///< beginnings and ends of operators that may draw, of all threads
int unlocked_draws = 0;  ///< operators that may draw without the mutex at present

uint64_t current_seed(at::Generator generator) {
  std::lock_guard guard(generator.mutex());
  return generator.current_seed();
}

// State as it is now. Restoring it does not allocate.
RngState whole_state(const at::Generator& generator) { return {generator, read_rng(generator)->state(), {}}; }

}  // namespace

bool Draws::expects(const at::Generator& generator, const OpTraits& op) const {
  if (!again_ || next_ >= again_->drawn_.size()) return false;
  const auto& drawn = again_->drawn_[next_];
  return drawn.op == &op && drawn.state->generator == generator;
}

Draws::Known* Draws::find(const at::Generator& generator) {
  for (auto& known : known_)
    if (known.first->generator == generator) return &known;
  return nullptr;
}

void Draws::add_generator(const at::Generator& generator) {
  std::lock_guard lock(rng_mutex());
  if (find(generator)) return;
  const auto now = read_rng(generator);
  known_.push_back({now, now, true});
}

void Draws::add_default_generators() {
  add_generator(at::globalContext().defaultGenerator(at::kCPU));
  const auto accelerator = at::getAccelerator();
  if (!accelerator) return;
  const auto& hooks = at::globalContext().getAcceleratorHooksInterface(accelerator);
  if (!hooks.isAvailable()) return;
  for (at::DeviceIndex i = 0; i < hooks.deviceCount(); ++i)
    if (hooks.hasPrimaryContext(i)) add_generator(at::globalContext().defaultGenerator({*accelerator, i}));
}

void Draws::draws(const std::shared_ptr<const RngState>& before, bool put_back) {
  if (const auto* known = find(before->generator)) {
    // In a rerun that restores generators, the first state of a function inside it has no meaning.
    const bool is_first = put_back && known->last == known->first;
    if (!is_first && !same(*known->last, *before)) handles_ = true;
  } else if (all_) {
    known_.push_back({before, before, false});
  }
}

void Draws::drew(const std::shared_ptr<const RngState>& before, const OpTraits& op,
                 const std::shared_ptr<const RngState>& after) {
  auto* known = find(before->generator);
  if (!known) return;
  drawn_.push_back({before, &op});
  known->last = after;
}

void Draws::ended(const std::vector<OpenScope>& outer) noexcept {
  const auto puts_back = [](const auto& scope) { return scope.draws && scope.draws->again_ && !scope.draws->handles_; };
  if (handles_ || std::any_of(outer.begin(), outer.end(), puts_back)) return;
  try {
    std::lock_guard lock(rng_mutex());
    for (const auto& known : known_)
      if (has_moved(*known.last)) handles_ = true;
  } catch (...) {  // no memory to compare
    handles_ = true;
  }
}

SecondDraws::SecondDraws(const Draws& first, bool ahead) : draws_(first.all_) {
  if (first.mixed_)
    throw CheckpointError(fmt::format(
        "[refrain::checkpoint] backward must rerun the function, but its operator `{}` drew random numbers while "
        "another thread drew from the same generator, so the state it drew from is unknown. Give each thread a "
        "generator of its own.",
        first.mixed_->name()));
  draws_.again_ = &first;
  draws_.handles_ = first.handles_;
  draws_.ahead_ = ahead;
  std::lock_guard lock(rng_mutex());
  draws_before_ = all_draws;
  if (!first.handles_) {
    for (const auto& known : first.known_) {
      if (!known.at_start)
        present_.push_back(whole_state(known.first->generator));
      else if (ahead)
        ahead_.push_back(whole_state(known.first->generator));
    }
    return;
  }
  auto& in_force = InForce::get();
  std::vector<RngState> states, saved;
  for (const auto& known : first.known_) {
    states.push_back({known.first->generator, known.first->state(), {}});
    const auto is_saved = [&](const auto& other) { return other.generator == known.first->generator; };
    if (std::none_of(in_force.saved.begin(), in_force.saved.end(), is_saved))
      saved.push_back(whole_state(known.first->generator));
  }
  in_force.saved.insert(in_force.saved.end(), saved.begin(), saved.end());
  ++in_force.calls;
  for (const auto& state : states) state.set();
}

SecondDraws::~SecondDraws() {
  std::lock_guard lock(rng_mutex());
  for (const auto& state : present_) state.set();
  // Unless another thread has drawn: then they cannot be told apart.
  if (draws_before_ + draws_.operators_ == all_draws)
    for (const auto& state : ahead_) state.set();
  if (!draws_.handles_) return;
  auto& in_force = InForce::get();
  if (--in_force.calls > 0) return;
  for (const auto& state : std::exchange(in_force.saved, {})) state.set();
}

DrawScope::DrawScope(const std::vector<OpenScope>& open, const at::Generator& generator, const OpTraits& op)
    : open_(open), op_(op), lock_(rng_mutex()), draws_before_(++all_draws), mixed_(unlocked_draws > 0) {
  bool ahead = false;
  for (const auto& scope : open) {
    if (!scope.draws || !scope.draws->again_) continue;
    ++scope.draws->operators_;
    if (scope.draws->expects(generator, op)) second_ = scope.draws;
    ahead |= scope.draws->is_ahead();
  }
  if (second_) {
    before_ = second_->again_->drawn_[second_->next_].state;
    if (!second_->handles_) present_ = read_rng(generator)->state();
    before_->set();
  } else {
    before_ = read_rng(generator);
    if (ahead) present_ = before_->state();
  }
  seed_ = current_seed(generator);
  for (const auto& scope : open)
    if (scope.draws && !scope.draws->again_) scope.draws->draws(before_, present_.defined());
}

void DrawScope::unlock() {
  if (second_) return;
  ++unlocked_draws;
  unlocked_ = true;
  lock_.unlock();
}

bool DrawScope::finish() {
  relock();
  mixed_ |= all_draws++ != draws_before_;
  const bool seeded =
      !op_.maybe_random && current_seed(before_->generator) != seed_;  // a custom operator may do that itself
  for (const auto& scope : open_)
    if (scope.draws && scope.draws->again_) ++scope.draws->operators_;
  if (op_.maybe_random && !has_moved(*before_)) return false;
  if (second_ && seeded)
    throw CheckpointError(fmt::format(
        "[refrain::checkpoint] backward reran the function, and another thread seeded the generator while its operator "
        "`{}` drew from it. Give each thread a generator of its own, or seed before or after.",
        op_.name()));
  std::shared_ptr<const RngState> after;
  for (const auto& scope : open_) {
    if (!scope.draws || scope.draws->again_) continue;
    if (!after) after = read_rng(before_->generator);
    scope.draws->drew(before_, op_, after);
    if (mixed_ || seeded) scope.draws->mixed_ = &op_;
  }
  if (second_) ++second_->next_;
  return true;
}

void DrawScope::relock() {
  if (!std::exchange(unlocked_, false)) return;
  lock_.lock();
  --unlocked_draws;
}

DrawScope::~DrawScope() {
  relock();
  if (!present_.defined()) return;
  auto generator = before_->generator;
  std::lock_guard guard(generator.mutex());
  generator.set_state(present_);
}

}  // namespace refrain::tape
