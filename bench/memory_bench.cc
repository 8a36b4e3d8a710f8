// What counting memory costs: one training step under LibTorch's own CPU allocator and one under the tracking allocator, in
// turn, in one process. `Time` is the tracked step; the counters matter:
//   plain_us, tracked_us  medians
//   overhead_percent      median over the pairs of tracked / plain - 1; `q1` and `q3` are its quartiles. Target: < 3
//   allocations           per step
#include <benchmark/benchmark.h>
#include <c10/core/CPUAllocator.h>
#include <torch/torch.h>
#include <torch/version.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "models/zoo.h"
#include "refrain/memory.h"

namespace {

using Clock = std::chrono::steady_clock;
using Work = std::function<void()>;

double quantile(std::vector<double> values, double q) {
  const auto at = values.begin() + static_cast<std::ptrdiff_t>(q * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

c10::Allocator* plain_allocator = nullptr;
c10::Allocator* tracking_allocator = nullptr;

double timed(c10::Allocator* allocator, const Work& work) {
  c10::SetCPUAllocator(allocator, std::numeric_limits<uint8_t>::max());
  work();  // untimed: each step follows one of its own kind
  const auto start = Clock::now();
  work();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void compare(benchmark::State& state, const Work& work) {
  std::vector<double> plain, tracked, overhead;
  bool tracked_first = false;
  for (auto _ : state) {
    double times[2];
    for (const bool track : {tracked_first, !tracked_first})
      times[track] = timed(track ? tracking_allocator : plain_allocator, work);
    tracked_first = !tracked_first;
    plain.push_back(times[0]), tracked.push_back(times[1]);
    overhead.push_back(100 * (times[1] / times[0] - 1));
    state.SetIterationTime(times[1]);
  }
  c10::SetCPUAllocator(tracking_allocator, std::numeric_limits<uint8_t>::max());
  const int64_t before = refrain::memory_stats().allocations;
  work();
  state.counters["plain_us"] = 1e6 * quantile(plain, 0.5);
  state.counters["tracked_us"] = 1e6 * quantile(tracked, 0.5);
  state.counters["overhead_percent"] = quantile(overhead, 0.5);
  state.counters["q1"] = quantile(overhead, 0.25);
  state.counters["q3"] = quantile(overhead, 0.75);
  state.counters["allocations"] = static_cast<double>(refrain::memory_stats().allocations - before);
}

Work training_step(const std::string& name) {
  std::shared_ptr model = refrain::models::make_model(name);
  const auto batch = model->synthetic_batch(1);
  return [model, batch] {
    model->module().zero_grad();
    model->loss(batch).backward();
  };
}

// Nothing but small operators: the allocator's share is as large as it gets.
Work small_operators() {
  const auto x = torch::rand({16, 16}).requires_grad_();
  return [x] {
    auto y = x + 1;
    for (int i = 0; i < 500; ++i) y = y.sin();
    y.sum().backward();
    x.mutable_grad().reset();
  };
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::AddCustomContext("torch", TORCH_VERSION);
  benchmark::AddCustomContext("threads", std::to_string(at::get_num_threads()));
  torch::manual_seed(1);
  plain_allocator = c10::GetCPUAllocator();
  refrain::install_memory_tracking();
  tracking_allocator = c10::GetCPUAllocator();
  const auto add = [](const char* name, const Work& work) {
    benchmark::RegisterBenchmark(name, [work](benchmark::State& state) { compare(state, work); })
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond)
        ->MinTime(3);
  };
  add("memory_tracking/small_operators", small_operators());
  add("memory_tracking/blocks-small", training_step("blocks-small"));
  add("memory_tracking/mlp", training_step("mlp"));
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
