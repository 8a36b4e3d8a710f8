#include "random_programs.h"

#include <malloc.h>

#include <cmath>
#include <cstring>
#include <map>

#include "machine.h"
#include "memory/testing.h"
#include "refrain/memory.h"

namespace refrain::fuzz {
namespace {

template <typename T>
void values_of(const std::string& bytes, std::vector<double>& out) {
  for (size_t i = 0; i + sizeof(T) <= bytes.size(); i += sizeof(T)) {
    T value;
    std::memcpy(&value, bytes.data() + i, sizeof(T));
    out.push_back(static_cast<double>(value));
  }
}

std::vector<double> values_of(const Record& record) {
  std::vector<double> values;
  const bool wide = record.shape.find("Double") != std::string::npos;
  const bool half = record.shape.find("BFloat16") != std::string::npos || record.shape.find("Half") == 0;
  if (half) return values;
  wide ? values_of<double>(record.bytes, values) : values_of<float>(record.bytes, values);
  return values;
}

std::string bytes_differ(const Record& a, const Record& b) {
  std::ostringstream out;
  out << a.name << ": ";
  if (a.shape != b.shape || a.bytes.size() != b.bytes.size()) {
    out << a.shape << " in the baseline, " << b.shape << " here";
    if (b.bytes.find("cannot be read") == 0) out << ", which " << b.bytes;
    return out.str();
  }
  if (a.name.find("generator") != std::string::npos) return out.str() + "state differs";
  const std::vector<double> x = values_of(a);
  const std::vector<double> y = values_of(b);
  size_t first = 0, count = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    if (std::memcmp(&x[i], &y[i], sizeof(double)) == 0) continue;
    if (count++ == 0) first = i;
  }
  out << a.shape << " differs in " << count << " of " << x.size() << " numbers";
  if (count > 0) out << ", first at " << first << ": " << x[first] << " in the baseline, " << y[first] << " here";
  return out.str();
}

// Results of backward aside, by name: the run that ended early has fewer.
std::string forward_difference(const Outcome& baseline, const Outcome& other) {
  std::map<std::string, const Record*> known;
  for (const Record& record : baseline.records) known[record.name] = &record;
  std::string found;
  for (const Record& b : other.records) {
    const auto a = known.find(b.name);
    if (b.gradient || a == known.end()) continue;
    if (a->second->shape != b.shape || a->second->bytes != b.bytes) found += bytes_differ(*a->second, b) + "\n";
  }
  return found;
}

}  // namespace

std::string leak(const Outcome& o) {
  const bool tape = o.leaked_ops != 0 || o.leaked_values != 0 || o.leaked_slots != 0 || o.leaked_regions != 0;
  // Fewer bytes than before: a thread of the engine's let go of what an earlier program had left with it.
  if (o.leaked_bytes <= 0 && !tape) return "";
  std::ostringstream out;
  out << "leaked " << o.leaked_bytes << " bytes, " << o.leaked_ops << " ops, " << o.leaked_values << " values, "
      << o.leaked_slots << " slots, " << o.leaked_regions << " regions";
  return out.str();
}

std::string difference(const Outcome& baseline, const Outcome& other, bool without_gradients) {
  if (without_gradients) return forward_difference(baseline, other);
  if (baseline.picks != other.picks)
    return "steps saw other tensors (sizes, views, requires_grad) than in the baseline";
  if (baseline.failed_steps != other.failed_steps) return "other steps threw in forward than in the baseline";
  if (baseline.records.size() != other.records.size()) return "another number of results than the baseline";
  std::string found;
  for (size_t i = 0; i < baseline.records.size(); ++i) {
    const Record& a = baseline.records[i];
    const Record& b = other.records[i];
    if (a.name == b.name && a.shape == b.shape && a.bytes == b.bytes) continue;
    found += (found.empty() ? "" : "\n") + bytes_differ(a, b);
  }
  return found;
}

bool is_undefined_or_zero(const Record& record) {
  return std::all_of(record.bytes.begin(), record.bytes.end(), [](char byte) { return byte == 0; });
}

std::string twin_difference(const Outcome& twin, const Outcome& other) {
  for (size_t i = 0; i < twin.records.size(); ++i) {
    const Record& a = twin.records[i];
    const Record& b = other.records[i];
    if (!a.gradient) continue;
    if (is_undefined_or_zero(a) && is_undefined_or_zero(b))
      continue;  // a clone has no history that a write in place keeps
    // the twin of a tensor that was overwritten without gradients is a clone, on which the loss does not depend
    if (a.shape == "undefined" && a.name.find(" grad ") != std::string::npos) continue;
    if (a.shape != b.shape) return bytes_differ(a, b);
    const std::vector<double> x = values_of(a);
    const std::vector<double> y = values_of(b);
    double scale = 1e-3;
    for (double v : x) scale = std::isfinite(v) ? std::max(scale, std::abs(v)) : scale;
    for (size_t k = 0; k < x.size(); ++k) {
      if (!std::isfinite(x[k]) || !std::isfinite(y[k])) continue;
      if (std::abs(x[k] - y[k]) > 1e-3 * scale) return bytes_differ(a, b);
    }
  }
  return "";
}

namespace {

Judgement failed(std::string why) {
  Judgement judgement;
  judgement.verdict = Verdict::kFailed;
  judgement.why = std::move(why);
  return judgement;
}

/// `cycles`: what the program may leave behind by itself is known already.
Judgement judge_refused(const Program& program, const Outcome& baseline, const Outcome& ours, bool cycles = false) {
  Judgement judgement;
  judgement.verdict = Verdict::kBaselineRefuses;
  judgement.refused_too = !ours.error.empty();
  // A refused backward may leave a cycle of LibTorch's own behind; it may also have come before the cycle. What a rerun region keeps
  // of its inputs' graph may keep a tensor that was overwritten by what was computed from the region's results.
  judgement.cycles =
      cycles || baseline.leaked_bytes != 0 || (ours.made_cycle && !baseline.made_cycle) || ours.has_rerun ||
      ours.records.size() > baseline.records.size();  // it came to iterations whose cycles LibTorch would make too
  if (!judgement.cycles && !leak(ours).empty()) {
    return failed("LibTorch refuses this program (" + baseline.error + ");\nours " + leak(ours));
  }
  if (judgement.refused_too) return judgement;
  const Outcome twin = run(program, Mode::kTwin);
  if (twin.optimizer_skipped != ours.optimizer_skipped) return judgement;
  // A clone is no view, so a step may choose otherwise.
  if (!twin.error.empty() || twin.picks != ours.picks || twin.failed_steps != ours.failed_steps) return judgement;
  const std::string difference = twin_difference(twin, ours);
  if (!difference.empty()) {
    return failed("LibTorch refuses this program; its out-of-place twin gives other gradients:\n" + difference);
  }
  judgement.twin_agreed = true;
  return judgement;
}

/// An error that the library documents, and what must have happened for it.
struct Refusal {
  const char* name;
  const char* says;
  bool (*may)(const Outcome& ours);
  bool is_ours = true;  ///< else LibTorch's
};

constexpr Refusal kRefusals[] = {
    {"another thread asked for what a cap has evicted", "of an evicted tensor",
     [](const Outcome& ours) { return ours.unpinned; }},
    {"an input of a rerun region was changed", "was changed since",
     [](const Outcome& ours) { return ours.rerun_input_changed; }},
    {"another thread changed the shape of what a region reads", "was changed since",
     [](const Outcome& ours) { return ours.reshaped_elsewhere; }},
    {"a backward inside a rerun region's function needs what was overwritten since", kInnerGradAgain,
     [](const Outcome& ours) {
       return ours.has_rerun && ours.error.find("modified by an inplace operation") != std::string::npos;
     },
     false},
    {"a rerun function's backward is nested deeper than LibTorch keeps on one thread",
     "the function did something else", [](const Outcome& ours) { return ours.has_rerun && ours.nests_deep; }},
    {"the number of threads was changed", "threads", [](const Outcome& ours) { return ours.threads_changed; }},
};

/// The baseline has a result and we threw.
Judgement judge_thrown(const Outcome& baseline, const Outcome& ours, bool cycles = false) {
  for (const Refusal& refusal : kRefusals) {
    if (ours.error.find(refusal.says) == std::string::npos || !refusal.may(ours)) continue;
    if (refusal.is_ours && ours.error.find("[refrain::") == std::string::npos) continue;
    Judgement judgement;
    judgement.verdict = Verdict::kRefusedByName;
    judgement.why = refusal.name;
    // a rerun region keeps the argument that was overwritten, perhaps by what was computed from the region's result
    judgement.cycles = cycles || baseline.leaked_bytes != 0 || ours.may_hold_itself();
    if (!judgement.cycles && !leak(ours).empty()) return failed("after " + ours.error + "\nours " + leak(ours));
    return judgement;
  }
  return failed("ours throws: " + ours.error);
}

/// All of it ran out of memory, or steps of it.
Judgement judge_out_of_memory(const Program& program, const Outcome& ours) {
  Program same = program;
  same.left_out = ours.refused_steps;
  const Outcome baseline = run(same, Mode::kPlain);
  coverage().steps_refused += static_cast<int64_t>(ours.refused_steps.size());
  coverage().ran_out += ours.ran_out;
  Judgement judgement;
  judgement.verdict = Verdict::kEqualWhereItRan;
  // a step that was refused in the middle may have made a cycle by then that LibTorch makes too
  judgement.cycles = baseline.leaked_bytes != 0 || ours.made_cycle || ours.may_hold_itself() ||
                     run(program, Mode::kPlain).leaked_bytes != 0;
  if (!ours.ran_out && !baseline.error.empty()) return judge_refused(same, baseline, ours, judgement.cycles);
  if (!ours.ran_out && !ours.error.empty()) return judge_thrown(baseline, ours, judgement.cycles);
  // where LibTorch refuses the program, it ended there, and ours went on until it ran out
  const bool comparable = !ours.ran_out || (ours.forward_ended && baseline.error.empty());
  const std::string differs = comparable ? difference(baseline, ours, ours.ran_out) : "";
  if (!differs.empty()) {
    std::string text;
    run(same, Mode::kPlain, &text);
    return failed("after a refusal of memory: " + differs + "\nthe baseline, without what was refused\n" + text);
  }
  if (!judgement.cycles && !leak(ours).empty()) return failed("after a refusal of memory, ours " + leak(ours));
  coverage().leaks_compared += !judgement.cycles;
  return judgement;
}

class Poison {
 public:
  explicit Poison(bool on) { memory_testing::set_poison(on); }
  ~Poison() { memory_testing::set_poison(false); }
  Poison(const Poison&) = delete;
  Poison& operator=(const Poison&) = delete;
};

Judgement judge_once(const Program& program, Kind kind) {
  const Poison poison(program.poison);
  const MemoryScope memory;
  const int64_t level = memory_stats().current;
  const Outcome baseline = run(program, Mode::kPlain);
  const auto surroundings = surroundings_of(kind, program.seed, level, memory.peak());
  const Outcome ours = run(program, mode_of(kind, program.seed), nullptr, surroundings.get());
  if (ours.ran_out || !ours.refused_steps.empty()) {
    const Judgement judgement = judge_out_of_memory(program, ours);
    if (judgement.verdict == Verdict::kFailed) return judgement;
    // what was refused leaves nothing behind
    const std::string differs = difference(baseline, run(program, Mode::kPlain));
    return differs.empty() ? judgement : failed("after a run that was refused memory, without the library: " + differs);
  }
  if (!baseline.error.empty()) return judge_refused(program, baseline, ours);
  if (!ours.error.empty()) return judge_thrown(baseline, ours);
  const std::string differs = difference(baseline, ours);
  if (!differs.empty()) return failed(differs);
  Judgement judgement;
  judgement.cycles = baseline.leaked_bytes != 0 || (surroundings && ours.made_cycle) || ours.may_hold_itself();
  if (!judgement.cycles && !leak(ours).empty()) return failed("ours " + leak(ours));
  coverage().leaks_compared += !judgement.cycles;
  if (!baseline.has_loss) judgement.verdict = Verdict::kNoGradient;
  return judgement;
}

}  // namespace

bool is_stable(const Program& program) {
  const Outcome first = run(program, Mode::kPlain);
  for (int i = 0; i < 8; ++i) {
    const Poison poison(i % 2 == 0);
    // Some kernels of LibTorch's read what nobody wrote outside of its allocator: other bytes there.
    mallopt(M_PERTURB, 31 * i + 1);
    const bool same = difference(first, run(program, Mode::kPlain)).empty();
    mallopt(M_PERTURB, 0);
    if (!same) return false;
  }
  return true;
}

Judgement judge(const Program& program, Kind kind) {
  Judgement judgement = judge_once(program, kind);
  // What is kept once, by a cache, is no leak.
  if (judgement.why.find("leaked") != std::string::npos) judgement = judge_once(program, kind);
  if (judgement.verdict != Verdict::kFailed || is_stable(program)) return judgement;
  Judgement unstable;
  unstable.verdict = Verdict::kUnstable;
  unstable.cycles = true;
  return unstable;
}

}  // namespace refrain::fuzz
