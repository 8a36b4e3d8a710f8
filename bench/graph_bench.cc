// What work on a step as a graph costs, by operator: simulate, find_defect, reading and writing JSON. No LibTorch.
#include <benchmark/benchmark.h>

#include "graph/families.h"
#include "graph/json.h"
#include "graph/schedule.h"

namespace refrain::graph {
namespace {

void set_ops(benchmark::State& state, const Graph& graph) {
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(graph.ops.size()));
  state.SetLabel(graph.model);
}

Graph step(const benchmark::State& state) {
  return make_family(kFamilies[static_cast<size_t>(state.range(0))], static_cast<int32_t>(state.range(1)));
}

void simulate_plain(benchmark::State& state) {
  const Graph graph = step(state);
  const Schedule schedule = empty_schedule(graph);
  for (auto _ : state) benchmark::DoNotOptimize(simulate(graph, schedule));
  set_ops(state, graph);
}

void check(benchmark::State& state) {
  const Graph graph = step(state);
  for (auto _ : state) benchmark::DoNotOptimize(find_defect(graph));
  set_ops(state, graph);
}

void write(benchmark::State& state) {
  const Graph graph = step(state);
  for (auto _ : state) benchmark::DoNotOptimize(to_json(graph));
  set_ops(state, graph);
}

void read(benchmark::State& state) {
  const Graph graph = step(state);
  const std::string json = to_json(graph);
  for (auto _ : state) benchmark::DoNotOptimize(read_graph(json));
  set_ops(state, graph);
}

/// All families in three sizes.
void sizes(benchmark::internal::Benchmark* bench) {
  for (size_t family = 0; family < std::size(kFamilies); ++family)
    for (const int64_t ops : {1'000, 10'000, 100'000}) bench->Args({static_cast<int64_t>(family), ops});
}

BENCHMARK(simulate_plain)->Apply(sizes);
BENCHMARK(check)->Apply(sizes);
BENCHMARK(write)->Args({4, 50'000})->Unit(benchmark::kMillisecond);
BENCHMARK(read)->Args({4, 50'000})->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace refrain::graph

BENCHMARK_MAIN();
