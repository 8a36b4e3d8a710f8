// What an operator costs in instructions, for bench/cost/run: under callgrind, each case once small and once large; the slope counts.
//
// usage: refrain-cost-steps [CASE...]   prints "CASE SIZE" before each dump; without valgrind it only runs the cases
#include <torch/torch.h>
#include <valgrind/callgrind.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "refrain/checkpoint.h"
#include "refrain/memory.h"
#include "refrain/memory_cap.h"

namespace {

using torch::Tensor;
using namespace refrain::literals;

struct Case {
  std::string name;
  int64_t small, large;
  std::function<void(int64_t)> run;
};

Tensor chain(Tensor x, int64_t ops, const std::function<Tensor(const Tensor&)>& step) {
  for (int64_t i = 0; i < ops; ++i) x = step(x);
  return x;
}

/// Forward of a region, never used.
void record(int64_t ops, const std::function<Tensor(const Tensor&)>& step) {
  const auto x = torch::ones({16, 16}).requires_grad_();
  refrain::checkpoint([&] { return chain(x, ops, step); });
}

/// Forward and backward of regions of 100 operators, each of which backward needs.
void replay(int64_t ops) {
  const auto x = torch::ones({16, 16}).requires_grad_();
  for (int64_t i = 0; i < ops; i += 100)
    refrain::checkpoint([&] { return chain(x, 100, [](const Tensor& y) { return y.sin(); }); }).sum().backward();
}

/// A step under a cap with room for all of it.
void capped(int64_t ops, const std::function<Tensor(const Tensor&)>& step) {
  const refrain::MemoryCap cap(1_GiB);
  const auto x = torch::ones({16, 16}).requires_grad_();
  chain(x, ops, step).sum().backward();
}

/// A step under a cap that evicts: a third of its 64 KiB results fits.
void evicting(int64_t ops) {
  const auto x = torch::ones({128, 128}).requires_grad_();
  const refrain::MemoryCap cap(refrain::memory_stats().current + (ops / 3 + 8) * 64_KiB);
  chain(x, ops, [](const Tensor& y) { return y.sin(); }).sum().backward();
}

/// One operator of `tensors` arguments in a region, and its replay.
void foreach (int64_t tensors) {
  torch::NoGradGuard no_grad;
  const auto w = torch::ones({4}).requires_grad_();
  std::vector<Tensor> leaves;
  for (int64_t i = 0; i < tensors; ++i) leaves.push_back(torch::ones({4}));
  const torch::AutoGradMode grad(true);
  refrain::checkpoint([&] {
    std::vector<Tensor> made;
    {
      torch::NoGradGuard inner;
      made = at::_foreach_mul(leaves, 1.5);
      at::_foreach_add_(made, leaves);
      at::_foreach_add_(leaves, 1);
    }
    return (w * made.front()).sum() + (w * made.back()).sum();
  }).backward();
}

std::vector<Case> cases() {
  const auto neg = [](const Tensor& y) { return y.neg(); };
  const auto weight = torch::ones({16, 16}).requires_grad_();
  const auto mm = [weight](const Tensor& y) { return y.mm(weight); };
  return {{"baseline_neg", 500, 1500,
           [neg](int64_t n) {
             chain(torch::ones({16, 16}).requires_grad_(), n, neg);
           }},
          {"record_neg", 500, 1500, [neg](int64_t n) { record(n, neg); }},
          {"record_mm", 500, 1500, [mm](int64_t n) { record(n, mm); }},
          {"replay_sin", 500, 1500, replay},
          {"cap_neg", 500, 1500, [neg](int64_t n) { capped(n, neg); }},
          {"cap_mm", 500, 1500, [mm](int64_t n) { capped(n, mm); }},
          {"cap_evicting_sin", 100, 300, evicting},
          {"foreach_few", 500, 1000, foreach},
          {"foreach_many", 4000, 8000, foreach}};
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> chosen(argv + 1, argv + argc);
  at::set_num_threads(1);
  for (const auto& c : cases()) {
    if (!chosen.empty() && std::find(chosen.begin(), chosen.end(), c.name) == chosen.end()) continue;
    c.run(c.small);  // what the first use sets up
    for (const int64_t size : {c.small, c.large}) {
      CALLGRIND_ZERO_STATS;
      CALLGRIND_START_INSTRUMENTATION;
      c.run(size);
      CALLGRIND_STOP_INSTRUMENTATION;
      std::printf("%s %lld\n", c.name.c_str(), static_cast<long long>(size));
      CALLGRIND_DUMP_STATS;
    }
  }
}
