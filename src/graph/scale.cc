#include "graph/scale.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "graph/schedule.h"
#include "refrain/error.h"

namespace refrain::graph {
namespace {

constexpr int64_t kSmall = 4096;

/// The properties of a value that must be the same.
auto shape(const Value& v) { return std::tie(v.producer, v.output, v.overwrites, v.birth, v.death, v.evictable); }

std::string difference(const Op& a, const Op& b, const Graph& of_a, const Graph& of_b) {
  if (a.name != b.name) return fmt::format("'{}' and '{}'", a.name, b.name);
  if (a.scope != b.scope) return fmt::format("'{}' of '{}' and of '{}'", a.name, a.scope, b.scope);
  if (a.inputs != b.inputs) return fmt::format("'{}' with other inputs", a.name);
  if (a.outputs != b.outputs) return fmt::format("'{}' with other outputs", a.name);
  if (std::tie(a.replayable, a.random, a.backward) != std::tie(b.replayable, b.random, b.backward))
    return fmt::format("'{}', one of which is once, random or backward and the other not", a.name);
  for (const ValueId v : a.outputs) {
    const Value& one = of_a.values[static_cast<size_t>(v)];
    const Value& other = of_b.values[static_cast<size_t>(v)];
    if (shape(one) != shape(other))
      return fmt::format("'{}', whose output {} has another live range (to {} and to {})", a.name, one.output,
                         one.death, other.death);
  }
  return "";
}

/// Evaluates the line through two points at a third.
class Line {
 public:
  Line(int64_t x0, int64_t x1, int64_t x) : x0_(x0), x1_(x1), x_(x) {}

  int64_t operator()(int64_t y0, int64_t y1, int64_t least = 0) const {
    // 128 bits: the product of two differences may be over 64
    __int128 over = static_cast<__int128>(y1 - y0) * (x_ - x0_), under = x1_ - x0_;
    if (under < 0) {
      over = -over;
      under = -under;
    }
    const __int128 half = over < 0 ? -under / 2 : under / 2;
    const __int128 y = y0 + (over + half) / under;
    constexpr __int128 kMost = int64_t{1} << 60;
    if (y > kMost || y < -kMost)
      throw InvalidArgument(fmt::format("[refrain::graph] a batch of {}: sizes are over 2^60; give a smaller one", x_));
    return std::max(static_cast<int64_t>(y), least);
  }

 private:
  int64_t x0_, x1_, x_;
};

double relative(int64_t found, int64_t expected) {
  return std::abs(static_cast<double>(found - expected)) /
         static_cast<double>(std::max<int64_t>(std::abs(expected), 1));
}

void require_same(const Graph& a, const Graph& b) {
  if (const std::string found = find_difference(a, b); !found.empty())
    throw InvalidArgument(fmt::format(
        "[refrain::graph] found two different steps: {}; expected one step with two batch sizes, of the same operators",
        found));
}

}  // namespace

std::string find_difference(const Graph& a, const Graph& b) {
  for (size_t i = 0; i < std::min(a.ops.size(), b.ops.size()); ++i)
    if (const std::string found = difference(a.ops[i], b.ops[i], a, b); !found.empty())
      return fmt::format("operator {} is {}", i, found);
  if (a.ops.size() != b.ops.size())
    return fmt::format("operator {} '{}' is in one only", std::min(a.ops.size(), b.ops.size()),
                       (a.ops.size() < b.ops.size() ? b.ops[a.ops.size()] : a.ops[b.ops.size()]).name);
  if (a.values.size() != b.values.size())
    return fmt::format("there are {} and {} values", a.values.size(), b.values.size());
  for (size_t v = 0; v < a.values.size(); ++v)
    if (shape(a.values[v]) != shape(b.values[v])) return fmt::format("source {} has another live range", v);
  return "";
}

Graph scale(const BatchGraph& one, const BatchGraph& other, int64_t batch) {
  if (one.batch == other.batch || one.batch < 1 || other.batch < 1 || batch < 1)
    throw InvalidArgument(fmt::format(
        "[refrain::graph] found batches of {} and {}, and {} wanted; expected two different ones, all at least 1",
        one.batch, other.batch, batch));
  require_same(one.graph, other.graph);
  const Line line(one.batch, other.batch, batch);
  Graph scaled = one.graph;
  for (size_t i = 0; i < scaled.ops.size(); ++i) {
    Op& op = scaled.ops[i];
    const Op& second = other.graph.ops[i];
    op.ns = line(op.ns, second.ns);
    op.workspace = line(op.workspace, second.workspace, std::numeric_limits<int64_t>::min());
    op.outside = line(op.outside, second.outside);
    op.gap = line(op.gap, second.gap);
  }
  for (size_t v = 0; v < scaled.values.size(); ++v)
    scaled.values[v].bytes = line(scaled.values[v].bytes, other.graph.values[v].bytes);
  scaled.end_outside = line(scaled.end_outside, other.graph.end_outside);
  scaled.end_gap = line(scaled.end_gap, other.graph.end_gap);
  if (const std::string defect = find_defect(scaled); !defect.empty())
    throw InvalidArgument(fmt::format("[refrain::graph] a batch of {}: {}; give a smaller one", batch, defect));
  return scaled;
}

ScaleError check(const Graph& scaled, const Graph& measured) {
  require_same(scaled, measured);
  ScaleError error;
  const auto found = simulate(scaled, empty_schedule(scaled)).peaks;
  const auto expected = simulate(measured, empty_schedule(measured)).peaks;
  for (size_t i = 0; i < found.size(); ++i) {
    if (const double off = relative(found[i], expected[i]); off > error.worst_peak) {
      error.worst_peak = off;
      error.place = static_cast<OpId>(i);
    }
  }
  for (size_t v = 0; v < scaled.values.size(); ++v) {
    const int64_t a = scaled.values[v].bytes, b = measured.values[v].bytes;
    if (std::max(a, b) < kSmall) continue;
    if (const double off = relative(a, b); off > error.worst_value) {
      error.worst_value = off;
      error.value = static_cast<ValueId>(v);
    }
  }
  return error;
}

}  // namespace refrain::graph
