#include "machine.h"
#include "refrain/selective.h"

/// Steps that tell a region's policy what to keep: they change no number, in any mode.
namespace refrain::fuzz {
namespace {

void step_mark(Machine& m) {
  auto x = m.pick(is_numeric);
  const auto answer = static_cast<CheckpointPolicy>(m.rng.below(5));
  m.detail("answer=", static_cast<int>(answer));
  set_policy(x->t, answer);
  m.wrote("mark", x);
}

void step_name(Machine& m) {
  auto x = m.pick(is_numeric);
  const char* const names[] = {"a", "b", "c"};
  const char* name = names[m.rng.below(3)];
  m.detail(name);
  checkpoint_name(x->t, name);
  m.wrote("checkpoint_name", x);
}

}  // namespace

std::vector<StepSpec> mark_steps() { return {{"mark", 1.5, step_mark}, {"name", 2, step_name}}; }

}  // namespace refrain::fuzz
