#include "evict/cap_state.h"

#include <c10/util/hash.h>

#include <algorithm>

namespace refrain::tape {
namespace {

constexpr size_t kMostPasses = size_t{1} << 16;

// Merges pairs: each has the demand of the greater and the time of both.
void merge_pairs(std::vector<StepPass>& passes) {
  std::sort(passes.begin(), passes.end(), [](const auto& a, const auto& b) { return a.demand < b.demand; });
  for (size_t i = 0; i < passes.size() / 2; ++i)
    passes[i] = {passes[2 * i + 1].demand, passes[2 * i].ns + passes[2 * i + 1].ns};
  passes.resize(passes.size() / 2);
}

}  // namespace

Cap& cap() {
  static auto* instance = new Cap;
  return *instance;
}

CapCounters& cap_counters() { return cap().counters; }

bool has_before_operator() { return static_cast<bool>(cap().before_operator); }

void before_operator() {
  if (cap().before_operator) cap().before_operator();
}

StepTimes step_times(TapeLock&) {
  const auto& step = cap().step;
  return {std::max(step.operators_ns, cap().last_operators_ns), step.again_ns};
}

std::vector<StepPass> step_passes(TapeLock&) { return cap().passes; }

void add_time(TapeLock&, int64_t operators_ns) { cap().step.operators_ns += operators_ns; }

void add_pass(TapeLock&, const StepPass& pass) {
  cap().step.again_ns += pass.ns;
  auto& passes = cap().passes;
  passes.push_back(pass);
  if (passes.size() >= kMostPasses) merge_pairs(passes);
}

int64_t absent_bytes(TapeLock&) { return cap().absent_bytes; }

void set_demand(TapeLock&, int64_t bytes) { cap().demand = bytes; }

void set_before_pass(void (*call)()) { cap().before_pass.store(call); }

void before_pass() {
  if (auto* call = cap().before_pass.load()) call();
}

int64_t least_ns(TapeLock&, const Op& op, int64_t ns) {
  constexpr size_t kMostKnown = size_t{1} << 16;
  auto& known = cap().least_ns;
  size_t key = reinterpret_cast<uintptr_t>(op.traits);
  for (const auto& ref : op.refs_in)
    for (size_t i = 0; i < ref.meta.sizes_and_strides.size(); ++i)
      key = c10::hash_combine(key, static_cast<size_t>(ref.meta.sizes_and_strides.size_at_unchecked(i)));
  if (known.size() >= kMostKnown) known.clear();
  const auto [entry, is_new] = known.emplace(key, ns);
  if (entry->second > ns) entry->second = ns;
  return entry->second;
}

}  // namespace refrain::tape
