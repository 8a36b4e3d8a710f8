#include "random_programs.h"

#include <cctype>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "machine.h"
#include "memory/testing.h"

namespace refrain::fuzz {
namespace {

std::vector<StepSpec> allowed_steps() {
  const char* without = std::getenv("REFRAIN_FUZZ_WITHOUT");
  const std::string excluded = "," + std::string(without == nullptr ? "" : without) + ",";
  std::vector<StepSpec> allowed;
  for (const StepSpec& spec : step_table()) {
    if (excluded.find("," + std::string(spec.kind) + ",") == std::string::npos) allowed.push_back(spec);
  }
  return allowed;
}

const char* random_kind(Rng& rng) {
  static const std::vector<StepSpec> steps = allowed_steps();
  static const double total = [] {
    double sum = 0;
    for (const StepSpec& spec : steps) sum += spec.weight;
    return sum;
  }();
  double at = rng.uniform() * total;
  for (const StepSpec& spec : steps) {
    at -= spec.weight;
    if (at <= 0) return spec.kind;
  }
  return steps.back().kind;
}

class Generator {
 public:
  explicit Generator(uint64_t seed) : seed_(seed), rng_(mix(seed, 5)) {}

  std::vector<Step> steps(int64_t count, int depth, double region_chance) {
    std::vector<Step> made;
    for (int64_t i = 0; i < count; ++i) {
      Step step;
      step.number = ++number_;
      step.seed = mix(seed_, static_cast<uint64_t>(step.number));
      const double roll = rng_.uniform();
      if (depth < 4 && roll < region_chance) {
        step.kind = rng_.chance(0.04) ? kThrowingRegion : kRegion;
        step.body = steps(2 + rng_.below(9), depth + 1, 0.12);
      } else if (depth < 4 && roll < region_chance + 0.05) {
        const char* const blocks[] = {kNoGrad, kNoGrad, kNoGrad, kEnableGrad, kAutocast};
        step.kind = blocks[rng_.below(5)];
        step.body = steps(1 + rng_.below(4), depth + 1, 0.12);
      } else {
        step.kind = random_kind(rng_);
      }
      made.push_back(std::move(step));
    }
    return made;
  }

  /// Every program has a region at the top.
  Step region() {
    Step step;
    step.number = ++number_;
    step.seed = mix(seed_, static_cast<uint64_t>(step.number));
    step.kind = kRegion;
    step.body = steps(4 + rng_.below(9), 1, 0.12);
    return step;
  }

  Rng& rng() { return rng_; }

 private:
  uint64_t seed_;
  Rng rng_;
  int number_ = 0;
};

Ending random_ending(Rng& rng) {
  const double roll = rng.uniform();
  if (roll < 0.42) return Ending::kBackward;
  if (roll < 0.57) return Ending::kBackwardTwice;
  if (roll < 0.72) return Ending::kGradOfSome;
  if (roll < 0.83) return Ending::kGradThenBackward;
  if (roll < 0.95) return Ending::kDoubleBackward;
  return Ending::kDropped;
}

std::string leak(const Outcome& o) {
  const bool tape = o.leaked_ops != 0 || o.leaked_values != 0 || o.leaked_slots != 0 || o.leaked_regions != 0;
  if (o.leaked_bytes == 0 && !tape) return "";
  std::ostringstream out;
  out << "leaked " << o.leaked_bytes << " bytes, " << o.leaked_ops << " ops, " << o.leaked_values << " values, "
      << o.leaked_slots << " slots, " << o.leaked_regions << " regions";
  return out.str();
}

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
    out << a.shape << " in the plain run, " << b.shape << " here";
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
  if (count > 0) out << ", first at " << first << ": " << x[first] << " in the plain run, " << y[first] << " here";
  return out.str();
}

std::string difference(const Outcome& plain, const Outcome& other) {
  if (plain.picks != other.picks) return "steps saw other tensors (sizes, views, requires_grad) than in the plain run";
  if (plain.failed_steps != other.failed_steps) return "other steps threw in forward than in the plain run";
  if (plain.records.size() != other.records.size()) return "another number of results than the plain run";
  std::string found;
  for (size_t i = 0; i < plain.records.size(); ++i) {
    const Record& a = plain.records[i];
    const Record& b = other.records[i];
    if (a.name == b.name && a.shape == b.shape && a.bytes == b.bytes) continue;
    found += (found.empty() ? "" : "\n") + bytes_differ(a, b);
  }
  return found;
}

/// The twin adds copies, so the sign of a zero or the order of a sum may change; a wrong version would be far off.
std::string twin_difference(const Outcome& twin, const Outcome& other) {
  for (size_t i = 0; i < twin.records.size(); ++i) {
    const Record& a = twin.records[i];
    const Record& b = other.records[i];
    if (!a.gradient) continue;
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

Judgement failed(std::string why) {
  Judgement judgement;
  judgement.verdict = Verdict::kFailed;
  judgement.why = std::move(why);
  return judgement;
}

Judgement judge_refused(const Program& program, const Outcome& plain, const Outcome& ours) {
  Judgement judgement;
  judgement.verdict = Verdict::kRefused;
  judgement.refused_too = !ours.error.empty();
  judgement.plain_leaks = plain.leaked_bytes != 0;
  // A refused backward may leave a cycle of plain autograd's own behind.
  if (plain.leaked_bytes == 0 && !leak(ours).empty()) {
    return failed("plain autograd refuses this program (" + plain.error + ");\nthe checkpointed run " + leak(ours));
  }
  if (judgement.refused_too) return judgement;
  const Outcome twin = run(program, Mode::kTwin);
  // A clone is no view, so a step may choose otherwise.
  if (!twin.error.empty() || twin.picks != ours.picks || twin.failed_steps != ours.failed_steps) return judgement;
  const std::string difference = twin_difference(twin, ours);
  if (!difference.empty()) {
    return failed("plain autograd refuses this program; its out-of-place twin gives other gradients:\n" + difference);
  }
  judgement.twin_agreed = true;
  return judgement;
}

class Poison {
 public:
  explicit Poison(bool on) { memory_testing::set_poison(on); }
  ~Poison() { memory_testing::set_poison(false); }
};

/// The steps in order, as places to try an edit at.
void collect_paths(const std::vector<Step>& steps, std::vector<size_t>& path, std::vector<std::vector<size_t>>& out) {
  for (size_t i = 0; i < steps.size(); ++i) {
    path.push_back(i);
    out.push_back(path);
    collect_paths(steps[i].body, path, out);
    path.pop_back();
  }
}

std::vector<Step>* parent_of(Program& program, const std::vector<size_t>& path) {
  std::vector<Step>* list = &program.steps;
  for (size_t i = 0; i + 1 < path.size(); ++i) {
    if (path[i] >= list->size()) return nullptr;
    list = &(*list)[path[i]].body;
  }
  return path.back() < list->size() ? list : nullptr;
}

Program without(Program program, const std::vector<size_t>& path) {
  std::vector<Step>* list = parent_of(program, path);
  list->erase(list->begin() + static_cast<std::ptrdiff_t>(path.back()));
  return program;
}

Program unwrapped(Program program, const std::vector<size_t>& path) {
  std::vector<Step>* list = parent_of(program, path);
  const auto at = list->begin() + static_cast<std::ptrdiff_t>(path.back());
  std::vector<Step> body = at->body;
  const auto next = list->erase(at);
  list->insert(next, body.begin(), body.end());
  return program;
}

/// Without the inputs that nothing mentions.
std::string without_unused_inputs(const std::string& text) {
  std::istringstream lines(text);
  std::string kept;
  for (std::string line; std::getline(lines, line);) {
    const size_t mark = line.find(" = input ");
    if (mark != std::string::npos) {
      const std::string name = line.substr(2, mark - 2);
      size_t mentions = 0;
      for (size_t at = text.find(name); at != std::string::npos; at = text.find(name, at + 1)) {
        const char before = at == 0 ? ' ' : text[at - 1];
        const char after = at + name.size() < text.size() ? text[at + name.size()] : ' ';
        if (!std::isalnum(static_cast<unsigned char>(before)) && !std::isalnum(static_cast<unsigned char>(after))) {
          ++mentions;
        }
      }
      if (mentions < 2) continue;
    }
    kept += line + "\n";
  }
  return kept;
}

}  // namespace

Program random_program(uint64_t seed) {
  Generator generate(seed);
  Program program;
  program.seed = seed;
  program.ending = random_ending(generate.rng());
  program.drop_handles_first = generate.rng().chance(0.5);
  program.loss_in_region = generate.rng().chance(0.2);
  program.poison = seed % 2 == 1;
  program.steps = generate.steps(1 + generate.rng().below(5), 0, 0.2);
  program.steps.push_back(generate.region());
  for (Step& step : generate.steps(generate.rng().below(8), 0, 0.25)) program.steps.push_back(std::move(step));
  return program;
}

Judgement judge(const Program& program) {
  const Poison poison(program.poison);
  const Outcome plain = run(program, Mode::kPlain);
  const Outcome ours = run(program, Mode::kCheckpoint);
  if (!plain.error.empty()) return judge_refused(program, plain, ours);
  if (!ours.error.empty()) return failed("the checkpointed run throws: " + ours.error);
  const std::string differs = difference(plain, ours);
  if (!differs.empty()) return failed(differs);
  if (plain.leaked_bytes == 0 && !leak(ours).empty()) return failed("the checkpointed run " + leak(ours));
  Judgement judgement;
  judgement.plain_leaks = plain.leaked_bytes != 0;
  if (!plain.has_loss) judgement.verdict = Verdict::kNoGradient;
  return judgement;
}

Program shrink(Program program, double seconds) {
  const auto start = std::chrono::steady_clock::now();
  const auto out_of_time = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() > seconds;
  };
  const auto still_fails = [](const Program& p) { return judge(p).verdict == Verdict::kFailed; };
  for (bool smaller = true; smaller && !out_of_time();) {
    smaller = false;
    std::vector<std::vector<size_t>> paths;
    std::vector<size_t> path;
    collect_paths(program.steps, path, paths);
    for (auto at = paths.rbegin(); at != paths.rend() && !out_of_time(); ++at) {
      std::vector<Step>* list = parent_of(program, *at);
      if (list == nullptr) continue;
      const bool block = !(*list)[at->back()].body.empty();
      Program candidate = without(program, *at);
      if (!still_fails(candidate)) {
        if (!block) continue;
        candidate = unwrapped(program, *at);
        if (!still_fails(candidate)) continue;
      }
      program = std::move(candidate);
      smaller = true;
      if (block) break;  // the paths are stale
    }
    Program simpler = program;
    simpler.ending = Ending::kBackward;
    simpler.loss_in_region = false;
    if (program.ending != simpler.ending && still_fails(simpler)) program = std::move(simpler);
  }
  return program;
}

std::string to_text(const Program& program) {
  std::string text = "program of seed " + std::to_string(program.seed) + (program.poison ? ", poisoned" : "") +
                     (program.loss_in_region ? ", loss in a region" : "") + "\n";
  run(program, Mode::kPlain, &text);
  return without_unused_inputs(text);
}

}  // namespace refrain::fuzz
