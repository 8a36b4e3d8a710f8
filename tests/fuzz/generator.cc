#include <algorithm>
#include <cstdlib>

#include "machine.h"

namespace refrain::fuzz {
namespace {

bool is_allowed(const char* kind) {
  static const char* const without = std::getenv("REFRAIN_FUZZ_WITHOUT");
  static const std::string excluded = "," + std::string(without == nullptr ? "" : without) + ",";
  return excluded.find("," + std::string(kind) + ",") == std::string::npos;
}

std::vector<StepSpec> allowed_steps() {
  std::vector<StepSpec> allowed;
  for (const StepSpec& spec : step_table())
    if (is_allowed(spec.kind)) allowed.push_back(spec);
  return allowed;
}

/// Draws step kinds by their weights.
class Kinds {
 public:
  explicit Kinds(bool rerunnable) {
    for (const StepSpec& spec : allowed_steps()) {
      if (rerunnable && spec.calls == Calls::kOnce) continue;
      steps_.push_back(spec);
      total_ += spec.weight;
    }
  }
  const char* draw(Rng& rng) const {
    double at = rng.uniform() * total_;
    for (const StepSpec& spec : steps_) {
      at -= spec.weight;
      if (at <= 0) return spec.kind;
    }
    return steps_.back().kind;
  }

 private:
  std::vector<StepSpec> steps_;
  double total_ = 0;
};

const char* random_kind(Rng& rng, bool rerunnable) {
  static const Kinds any(false), repeatable(true);
  return (rerunnable ? repeatable : any).draw(rng);
}

bool has_kind(const std::vector<Step>& steps, std::string_view kind) {
  return std::any_of(steps.begin(), steps.end(),
                     [&](const Step& step) { return step.kind == kind || has_kind(step.body, kind); });
}

/// Options under which a second call cannot be like the first.
void relax(Step& region) {
  // It goes on to the end, and throws again.
  if (region.kind == kThrowingRegion) region.options.early_stop = true;
  // Called from a backward inside itself, it finds autocast's cache filled.
  if (has_kind(region.body, kAutocast) && has_kind(region.body, "inner_grad")) region.options.strict = false;
  // What throws through it would end the program.
  if (region.kind == kThrowingRegion || has_kind(region.body, kThrowingRegion) || has_kind(region.body, "inner_grad") ||
      !is_allowed("noexcept"))
    region.options.is_noexcept = false;
}

/// What a block is, where it may be anything.
const char* random_block(Rng& rng, bool in_rerun) {
  const char* const always[] = {kNoGrad, kNoGrad, kNoGrad, kEnableGrad, kAutocast, kOffloadScope, kOffloadScope};
  const char* const once[] = {kTwoThreads, kTwoThreads, kCap, kBudget};
  const char* kind = in_rerun || rng.chance(0.6) ? always[rng.below(7)] : once[rng.below(4)];
  return is_allowed(kind) ? kind : kNoGrad;
}

class Generator {
 public:
  explicit Generator(uint64_t seed) : seed_(seed), rng_(mix(seed, 5)) {}

  /// @param in_rerun  only steps that may run twice.
  std::vector<Step> steps(int64_t count, int depth, double region_chance, bool in_rerun) {
    std::vector<Step> made;
    for (int64_t i = 0; i < count; ++i) {
      Step step = new_step();
      const double roll = rng_.uniform();
      if (depth < 4 && roll < region_chance) {
        step.kind = rng_.chance(0.04) ? kThrowingRegion : kRegion;
        step.options = random_options(rng_, in_rerun);
        step.body = steps(2 + rng_.below(9), depth + 1, kNested, in_rerun || step.options.rerun);
        relax(step);
      } else if (depth < 4 && roll < region_chance + 0.06) {
        step.kind = random_block(rng_, in_rerun);
        // the other thread's writes without a version are not seen from this one
        const bool repeatable = in_rerun || step.kind == kTwoThreads;
        step.body = steps(1 + rng_.below(4), depth + 1, kNested, repeatable);
      } else {
        step.kind = random_kind(rng_, in_rerun);
      }
      made.push_back(std::move(step));
    }
    return made;
  }

  /// Every program has a region at the top.
  Step region() {
    Step step = new_step();
    step.kind = kRegion;
    step.options = random_options(rng_, false);
    step.body = steps(4 + rng_.below(9), 1, kNested, step.options.rerun);
    relax(step);
    return step;
  }

  std::vector<Backward> backwards() {
    std::vector<Backward> made(static_cast<size_t>(count_of_backwards()));
    for (Backward& backward : made) {
      const double roll = rng_.uniform();
      backward.kind = roll < 0.6 ? Backward::kBackward : roll < 0.85 ? Backward::kGrad : Backward::kDoubleBackward;
      backward.seed = rng_.next();
      backward.elsewhere = rng_.chance(0.07) && is_allowed("elsewhere");
    }
    return made;
  }

  int iterations() { return rng_.chance(0.6) || !is_allowed("iterations") ? 1 : static_cast<int>(2 + rng_.below(3)); }
  Optimizer optimizer() { return static_cast<Optimizer>(rng_.below(4)); }

  Rng& rng() { return rng_; }

 private:
  static constexpr double kNested = 0.12;

  Step new_step() {
    Step step;
    step.number = ++number_;
    step.seed = mix(seed_, static_cast<uint64_t>(step.number));
    return step;
  }

  int count_of_backwards() {
    const double roll = rng_.uniform();
    if (roll < 0.03) return 0;
    if (roll < 0.53) return 1;
    if (roll < 0.78) return 2;
    if (roll < 0.89) return 3;
    return roll < 0.96 ? 4 : 5;
  }

  uint64_t seed_;
  Rng rng_;
  int number_ = 0;
};

}  // namespace

Program random_program(uint64_t seed) {
  Generator generate(seed);
  Program program;
  program.seed = seed;
  program.iterations = generate.iterations();
  program.optimizer = generate.optimizer();
  program.backwards = generate.backwards();
  program.drop_handles_first = generate.rng().chance(0.5);
  program.loss_in_region = generate.rng().chance(0.2);
  if (generate.rng().chance(0.3)) program.loss_options.policy = random_policy(generate.rng());
  program.poison = seed % 2 == 1;
  program.steps = generate.steps(1 + generate.rng().below(5), 0, 0.2, false);
  program.steps.push_back(generate.region());
  for (Step& step : generate.steps(generate.rng().below(8), 0, 0.25, false)) program.steps.push_back(std::move(step));
  return program;
}

}  // namespace refrain::fuzz
