// What a region costs: recording per operator, watching, entering, refilling, and a chain of a million operators.
//
// Every benchmark runs a plain chain and the same chain under refrain in turn, in one loop, and reports the difference
// of the medians: the machine's mood hits both alike. `Time` is that of the variant named; the counters matter:
//   plain_ns, region_ns   one operator, without and within a region
//   record_ns             their difference: recording one operator, in forward
//   record_ns, cap_ns     of a case `cold`: the same between kernels that flush the caches; under a cap with room
//   destroy_ns            dropping one operator with its part of the graph, without backward, over the plain cost
#include <benchmark/benchmark.h>
#include <torch/torch.h>
#include <torch/version.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "refrain/checkpoint.h"
#include "refrain/memory_cap.h"
#include "refrain/tape.h"

namespace {

using Clock = std::chrono::steady_clock;
using Step = std::function<torch::Tensor(const torch::Tensor&)>;

constexpr int64_t kOps = 1000;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

torch::Tensor leaf(bool requires_grad) { return torch::rand({16, 16}).requires_grad_(requires_grad); }

torch::Tensor chain(const Step& step, const torch::Tensor& input, int64_t ops) {
  auto x = input + 1;  // in-place steps must not meet the leaf
  for (int64_t i = 0; i < ops; ++i) x = step(x);
  return x;
}

torch::Tensor maybe_checkpoint(bool region, const Step& step, const torch::Tensor& input, int64_t ops) {
  if (!region) return chain(step, input, ops);
  return refrain::checkpoint([&] { return chain(step, input, ops); });
}

struct Sample {
  double forward = 0, destroy = 0;
};

Sample record_once(bool region, const Step& step, const torch::Tensor& input) {
  const auto start = Clock::now();
  auto out = maybe_checkpoint(region, step, input, kOps);
  const double forward = seconds_since(start);
  const auto destroy_start = Clock::now();
  out.reset();
  return {forward, seconds_since(destroy_start)};
}

void recording(benchmark::State& state, const Step& step, bool requires_grad) {
  const auto input = leaf(requires_grad);
  for (int i = 0; i < 3; ++i) record_once(false, step, input), record_once(true, step, input);
  std::vector<double> plain, region, plain_destroy, region_destroy;
  int64_t recorded = 0;
  for (auto _ : state) {
    const auto a = record_once(false, step, input);
    const int64_t before = refrain::tape_stats().recorded_ops;
    const auto b = record_once(true, step, input);
    recorded = refrain::tape_stats().recorded_ops - before;
    plain.push_back(a.forward), plain_destroy.push_back(a.destroy);
    region.push_back(b.forward), region_destroy.push_back(b.destroy);
    state.SetIterationTime(b.forward);
  }
  constexpr double kPerOp = 1e9 / kOps;
  state.counters["plain_ns"] = median(plain) * kPerOp;
  state.counters["region_ns"] = median(region) * kPerOp;
  state.counters["record_ns"] = (median(region) - median(plain)) * kPerOp;
  state.counters["destroy_ns"] = (median(region_destroy) - median(plain_destroy)) * kPerOp;
  state.counters["recorded_ops"] = static_cast<double>(recorded);
}

/// Takes the caches from the tape, as the kernels of a real step do: writes 4 MiB, twice the second level.
void flush_caches() {
  static std::vector<int64_t> bytes(size_t{4} << 17);
  for (size_t i = 0; i < bytes.size(); i += 8) ++bytes[i];
  benchmark::ClobberMemory();
}

/// Time of each operator of a chain with the caches flushed before it.
std::vector<double> cold_times(const Step& step, const torch::Tensor& input, int64_t ops) {
  std::vector<double> times;
  auto x = input + 1;
  for (int64_t i = 0; i < ops; ++i) {
    flush_caches();
    const auto start = Clock::now();
    x = step(x);
    times.push_back(seconds_since(start));
  }
  return times;
}

/// Recording as in a step whose kernels have used the caches in between: in a region, and under a cap with room.
void recording_cold(benchmark::State& state, const Step& step) {
  constexpr int64_t kColdOps = 200;
  const auto input = leaf(true);
  std::vector<double> plain, region, cap;
  const auto add = [](std::vector<double>& to, std::vector<double> times) {
    to.insert(to.end(), times.begin(), times.end());
  };
  for (auto _ : state) {
    add(plain, cold_times(step, input, kColdOps));
    std::vector<double> times;
    const auto out = refrain::checkpoint([&] {
      times = cold_times(step, input, kColdOps);
      return input.neg();
    });
    add(region, times);
    const refrain::MemoryCap room(refrain::Bytes{1} << 40);
    add(cap, cold_times(step, input, kColdOps));
    state.SetIterationTime(median(times));
  }
  state.counters["plain_ns"] = median(plain) * 1e9;
  state.counters["record_ns"] = (median(region) - median(plain)) * 1e9;
  state.counters["cap_ns"] = (median(cap) - median(plain)) * 1e9;
}

/// Operators outside any region while some slot is pending: the fallback stays on to see writes to leaves.
void watching(benchmark::State& state, const Step& step) {
  const auto input = leaf(true);
  std::vector<double> plain, watched;
  const auto run = [&] {
    const auto start = Clock::now();
    benchmark::DoNotOptimize(chain(step, input, kOps));
    return seconds_since(start);
  };
  for (int i = 0; i < 3; ++i) run();
  for (auto _ : state) {
    plain.push_back(run());
    const auto pending = refrain::checkpoint([&] { return input.sin().sin(); });
    watched.push_back(run());
    state.SetIterationTime(watched.back());
  }
  constexpr double kPerOp = 1e9 / kOps;
  state.counters["plain_ns"] = median(plain) * kPerOp;
  state.counters["watched_ns"] = median(watched) * kPerOp;
  state.counters["watch_ns"] = (median(watched) - median(plain)) * kPerOp;
}

/// Backward of a region whose every operator saved its input, beside the same backward without a region.
void refill(benchmark::State& state, const Step& step) {
  const auto input = leaf(true);
  const auto run = [&](bool region) {
    auto loss = maybe_checkpoint(region, step, input, kOps).sum();
    const auto start = Clock::now();
    loss.backward();
    const double took = seconds_since(start);
    input.mutable_grad().reset();
    return took;
  };
  const auto kernels = [&] {
    torch::NoGradGuard no_grad;
    const auto start = Clock::now();
    benchmark::DoNotOptimize(chain(step, input, kOps));
    return seconds_since(start);
  };
  for (int i = 0; i < 3; ++i) run(false), run(true), kernels();
  std::vector<double> plain, region, kernel;
  int64_t replayed = 0;
  for (auto _ : state) {
    plain.push_back(run(false));
    kernel.push_back(kernels());
    const int64_t before = refrain::tape_stats().replayed_ops;
    region.push_back(run(true));
    replayed = refrain::tape_stats().replayed_ops - before;
    state.SetIterationTime(region.back());
  }
  constexpr double kPerOp = 1e9 / kOps;
  state.counters["plain_ns"] = median(plain) * kPerOp;
  state.counters["region_ns"] = median(region) * kPerOp;
  state.counters["refill_ns"] = (median(region) - median(plain)) * kPerOp;
  state.counters["kernel_ns"] = median(kernel) * kPerOp;  // the least that refill_ns can be
  state.counters["replayed_ops"] = static_cast<double>(replayed);
}

void enter_and_exit(benchmark::State& state) {
  for (auto _ : state) refrain::checkpoint([] {});
}

void enter_and_exit_without_gradients(benchmark::State& state) {
  torch::NoGradGuard no_grad;
  for (auto _ : state) refrain::checkpoint([] {});
}

void enter_and_exit_without_rng(benchmark::State& state) {
  for (auto _ : state) refrain::checkpoint(refrain::CheckpointOptions().preserve_rng_state(false), [] {});
}

void one_operator_region(benchmark::State& state) {
  const auto input = leaf(true);
  for (auto _ : state) benchmark::DoNotOptimize(refrain::checkpoint([&] { return input.sin(); }));
}

/// The operators of one long region in three timed parts. `backward_too`: the chain ends in the only operator that saves
/// its input, so backward replays the whole of it, then walks the graph; without it the tape is dropped unused.
void long_chain(benchmark::State& state, bool region, bool backward_too) {
  const int64_t ops = state.range(0);
  const auto input = torch::rand({1}).requires_grad_();
  const Step neg = [](const torch::Tensor& x) { return x.neg(); };
  double record = 0, backward = 0, destroy = 0;
  int64_t replayed = 0;
  for (auto _ : state) {
    const int64_t before = refrain::tape_stats().replayed_ops;
    auto start = Clock::now();
    const Step body = [&](const torch::Tensor& x) { return chain(neg, x, ops).sin(); };
    torch::Tensor out = region ? refrain::checkpoint(body, input) : body(input);
    record += seconds_since(start);
    start = Clock::now();
    if (backward_too) out.backward();
    backward += seconds_since(start);
    start = Clock::now();
    out.reset();
    destroy += seconds_since(start);
    input.mutable_grad().reset();
    replayed = refrain::tape_stats().replayed_ops - before;
    state.SetIterationTime(record + backward + destroy);
  }
  const auto per_run = benchmark::Counter::kAvgIterations;
  state.counters["record_s"] = benchmark::Counter(record, per_run);
  state.counters["backward_s"] = benchmark::Counter(backward, per_run);
  state.counters["destroy_s"] = benchmark::Counter(destroy, per_run);
  state.counters["replayed_ops"] = static_cast<double>(replayed);
  state.counters["live_ops_after"] = static_cast<double>(refrain::tape_stats().live_ops);
}

struct NamedStep {
  std::string name;
  Step step;
  bool keeps_input = false;       // autograd saves an input or result of the chain: a slot for each operator
  bool overwrites_saved = false;  // autograd refuses the backward of such a chain
};

/// Rows sum to 1: a thousand products neither overflow nor sink into slow denormal numbers.
torch::Tensor averaging_matrix() { return torch::rand({16, 16}).softmax(1); }

std::vector<NamedStep> steps() {
  const auto other = torch::rand({16, 16});
  const auto weight = averaging_matrix().requires_grad_();
  return {
      {"neg", [](const torch::Tensor& x) { return x.neg(); }},
      {"neg_", [](torch::Tensor x) { return x.neg_(); }},
      {"add", [other](const torch::Tensor& x) { return x.add(other); }},
      {"add_", [other](torch::Tensor x) { return x.add_(other); }},
      {"sin", [](const torch::Tensor& x) { return x.sin(); }, true},
      {"tanh_", [](torch::Tensor x) { return x.tanh_(); }, true, true},
      {"mm", [weight](const torch::Tensor& x) { return x.mm(weight); }, true},
  };
}

void register_all() {
  const auto us = benchmark::kMicrosecond;
  for (const auto& s : steps()) {
    const auto step = s.step;
    const std::string kind = s.keeps_input ? "slots" : "no_slots";
    benchmark::RegisterBenchmark(("record/" + s.name + "/" + kind).c_str(),
                                 [step](benchmark::State& state) { recording(state, step, true); })
        ->UseManualTime()
        ->Unit(us);
    // Nothing requires a gradient: recorded all the same, but autograd keeps nothing. The weight of mm does require one.
    if (s.name != "mm") {
      benchmark::RegisterBenchmark(("record/" + s.name + "/input_without_grad").c_str(),
                                   [step](benchmark::State& state) { recording(state, step, false); })
          ->UseManualTime()
          ->Unit(us);
    }
  }
  const auto other = averaging_matrix();
  benchmark::RegisterBenchmark("record/mm/input_without_grad",
                               [other](benchmark::State& state) {
                                 recording(
                                     state, [&](const torch::Tensor& x) { return x.mm(other); }, false);
                               })
      ->UseManualTime()
      ->Unit(us);
  for (const auto& s : steps()) {
    const auto step = s.step;
    if (s.name == "neg" || s.name == "add" || s.name == "mm") {
      benchmark::RegisterBenchmark(("record/" + s.name + "/cold").c_str(),
                                   [step](benchmark::State& state) { recording_cold(state, step); })
          ->UseManualTime()
          ->Iterations(20)
          ->Unit(us);
    }
    if (s.name == "neg" || s.name == "neg_" || s.name == "mm") {
      benchmark::RegisterBenchmark(("watch/" + s.name).c_str(),
                                   [step](benchmark::State& state) { watching(state, step); })
          ->UseManualTime()
          ->Unit(us);
    }
    if (s.keeps_input && !s.overwrites_saved) {
      benchmark::RegisterBenchmark(("refill/" + s.name).c_str(),
                                   [step](benchmark::State& state) { refill(state, step); })
          ->UseManualTime()
          ->Unit(us);
    }
  }
  benchmark::RegisterBenchmark("region/empty", enter_and_exit);
  benchmark::RegisterBenchmark("region/empty/no_grad_mode", enter_and_exit_without_gradients);
  benchmark::RegisterBenchmark("region/empty/no_rng", enter_and_exit_without_rng);
  benchmark::RegisterBenchmark("region/one_op", one_operator_region);

  const auto add_chain = [](const char* name, bool region, bool backward_too) {
    benchmark::RegisterBenchmark(name, [=](benchmark::State& state) { long_chain(state, region, backward_too); })
        ->Arg(1'000'000)
        ->Iterations(1)
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond);
  };
  add_chain("chain/plain", false, true);
  add_chain("chain/region", true, true);
  add_chain("chain/region/unused", true, false);
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::AddCustomContext("torch", TORCH_VERSION);
  benchmark::AddCustomContext("compiler", "g++ " __VERSION__);
  benchmark::AddCustomContext("threads", std::to_string(at::get_num_threads()));
  torch::manual_seed(1);
  register_all();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
