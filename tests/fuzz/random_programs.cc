#include "random_programs.h"

#include <cmath>
#include <cstring>
#include <map>

#include "machine.h"
#include "memory/testing.h"

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

// Results of backward aside, by name: the run that ended early has fewer.
std::string forward_difference(const Outcome& plain, const Outcome& other) {
  std::map<std::string, const Record*> known;
  for (const Record& record : plain.records) known[record.name] = &record;
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
  if (o.leaked_bytes == 0 && !tape) return "";
  std::ostringstream out;
  out << "leaked " << o.leaked_bytes << " bytes, " << o.leaked_ops << " ops, " << o.leaked_values << " values, "
      << o.leaked_slots << " slots, " << o.leaked_regions << " regions";
  return out.str();
}

std::string difference(const Outcome& plain, const Outcome& other, bool without_gradients) {
  if (without_gradients) return forward_difference(plain, other);
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

namespace {

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
  // A refused backward may leave a cycle of plain autograd's own behind; it may also have come before the cycle.
  judgement.plain_leaks = plain.leaked_bytes != 0 || (ours.made_cycle && !plain.made_cycle);
  if (!judgement.plain_leaks && !leak(ours).empty()) {
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

/// Plain accepts and we threw: right only for a rerun region whose inputs were changed before its second call.
Judgement judge_thrown(const Outcome& plain, const Outcome& ours) {
  const bool says_so = ours.error.find("was changed since") != std::string::npos;
  if (!says_so || !ours.rerun_input_changed) return failed("the checkpointed run throws: " + ours.error);
  Judgement judgement;
  judgement.verdict = Verdict::kChanged;
  judgement.plain_leaks = plain.leaked_bytes != 0;
  if (plain.leaked_bytes == 0 && !leak(ours).empty())
    return failed("after " + ours.error + "\nthe checkpointed run " + leak(ours));
  return judgement;
}

class Poison {
 public:
  explicit Poison(bool on) { memory_testing::set_poison(on); }
  ~Poison() { memory_testing::set_poison(false); }
};

Judgement judge_once(const Program& program) {
  const Poison poison(program.poison);
  const Outcome plain = run(program, Mode::kPlain);
  const Outcome ours = run(program, Mode::kCheckpoint);
  if (!plain.error.empty()) return judge_refused(program, plain, ours);
  if (!ours.error.empty()) return judge_thrown(plain, ours);
  const std::string differs = difference(plain, ours);
  if (!differs.empty()) return failed(differs);
  if (plain.leaked_bytes == 0 && !leak(ours).empty()) return failed("the checkpointed run " + leak(ours));
  Judgement judgement;
  judgement.plain_leaks = plain.leaked_bytes != 0;
  if (!plain.has_loss) judgement.verdict = Verdict::kNoGradient;
  return judgement;
}

}  // namespace

bool is_stable(const Program& program) {
  const Outcome first = run(program, Mode::kPlain);
  const Poison poison(true);
  const Outcome second = run(program, Mode::kPlain);
  return !first.error.empty() || difference(first, second).empty();
}

Judgement judge(const Program& program) {
  const Judgement judgement = judge_once(program);
  if (judgement.verdict != Verdict::kFailed || is_stable(program)) return judgement;
  Judgement unstable;
  unstable.verdict = Verdict::kUnstable;
  unstable.plain_leaks = true;
  return unstable;
}

}  // namespace refrain::fuzz
