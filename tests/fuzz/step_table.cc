#include <algorithm>
#include <cstring>

#include "machine.h"

namespace refrain::fuzz {
namespace {

void collect_needs(const std::vector<Step>& steps, std::set<std::string>& names) {
  for (const Step& step : steps) {
    collect_needs(step.body, names);
    const StepSpec* spec = find_step(step.kind);
    if (spec == nullptr) continue;
    std::istringstream needs(spec->needs);
    for (std::string name; std::getline(needs, name, ',');) names.insert(name);
  }
}

}  // namespace

bool may_overlap(const Tensor& t) {
  std::vector<std::pair<int64_t, int64_t>> dims;
  for (int64_t d = 0; d < t.dim(); ++d) {
    if (t.size(d) > 1) dims.emplace_back(t.stride(d), t.size(d));
  }
  std::sort(dims.begin(), dims.end());
  int64_t reach = 1;
  for (const auto& [stride, size] : dims) {
    if (stride < reach) return true;
    reach = stride * size;
  }
  return false;
}

bool is_writable(const Tensor& t) {
  if (!is_float(t) || may_overlap(t)) return false;
  if (!at::GradMode::is_enabled()) return true;
  if (t.is_leaf() && t.requires_grad()) return false;
  return !(t.is_view() && t._base().is_leaf() && t._base().requires_grad());
}

bool broadcasts_to(const Tensor& from, at::IntArrayRef to) {
  if (from.dim() > static_cast<int64_t>(to.size())) return false;
  for (int64_t d = 1; d <= from.dim(); ++d) {
    const int64_t n = from.size(from.dim() - d);
    if (n != 1 && n != to[to.size() - d]) return false;
  }
  return true;
}

bool broadcast_together(const Tensor& a, const Tensor& b) {
  int64_t numel = 1;
  for (int64_t d = 1; d <= std::max(a.dim(), b.dim()); ++d) {
    const int64_t n = d <= a.dim() ? a.size(a.dim() - d) : 1;
    const int64_t m = d <= b.dim() ? b.size(b.dim() - d) : 1;
    if (n != m && n != 1 && m != 1) return false;
    numel *= std::max(n, m);
  }
  return numel <= kMaxNumel;
}

const std::vector<StepSpec>& step_table() {
  static const std::vector<StepSpec> table = [] {
    std::vector<StepSpec> all;
    for (const auto& part :
         {compute_steps(), layer_steps(), view_steps(), write_steps(), custom_steps(), mark_steps(), outside_steps()}) {
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }();
  return table;
}

std::vector<std::string_view> step_kinds() {
  std::vector<std::string_view> kinds;
  for (const StepSpec& spec : step_table()) kinds.emplace_back(spec.kind);
  for (const char* kind : {kRegion, kNoGrad, kEnableGrad, kAutocast, kOffloadScope, kCap, kBudget, kTwoThreads})
    kinds.emplace_back(kind);
  return kinds;
}

const StepSpec* find_step(const char* kind) {
  for (const StepSpec& spec : step_table()) {
    if (std::strcmp(spec.kind, kind) == 0) return &spec;
  }
  return nullptr;
}

std::set<std::string> needs_of(const std::vector<Step>& steps) {
  std::set<std::string> names;
  collect_needs(steps, names);
  return names;
}

}  // namespace refrain::fuzz
