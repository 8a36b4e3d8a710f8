#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cmath>
#include <memory>
#include <optional>

#include "apps/refrain/html_file.h"
#include "apps/refrain/measure.h"
#include "apps/refrain/published.h"
#include "apps/refrain/steps.h"
#include "apps/refrain/table.h"
#include "apps/refrain/verify.h"
#include "models/strategy.h"
#include "refrain/memory.h"
#include "refrain/memory_cap.h"
#include "refrain/torch_error.h"

namespace refrain::cli {
namespace {

struct NamedHeuristic {
  const char* name;
  EvictionHeuristic value;
};

/// The first is the library's own choice.
constexpr std::array<NamedHeuristic, 4> kHeuristics{{{"h_dtr", EvictionHeuristic::kHDtr},
                                                     {"lru", EvictionHeuristic::kLru},
                                                     {"largest", EvictionHeuristic::kLargest},
                                                     {"msps", EvictionHeuristic::kMsps}}};

/// Why a step was not done under a limit.
struct Refusal {
  bool is_of_time = false;  ///< it fits, but recomputes for longer than `--max-overhead` allows
  Bytes missing = 0;        ///< to the smallest limit that could do; if of time, to one that surely does
};

/// Steps under one limit. Bytes are over the level before the step; what is counted is of the last step.
struct Row {
  int percent = 0;
  NamedHeuristic heuristic = kHeuristics.front();
  Bytes limit = 0, peak = 0;
  Bytes resident_peak = 0;  ///< of the process, over what was resident before with all that is free given back
  std::vector<double> step_ms = {}, added_ms = {};
  MemoryCapStats cost = {};
  bool is_bit_equal = true;
  std::optional<Refusal> refusal = {};

  bool fits() const { return !refusal; }
  bool is_over() const { return peak > limit; }
};

std::vector<int> parse_percents(const std::vector<std::string>& texts) {
  std::vector<int> percents;
  for (const auto& text : texts) {
    int percent = 0;
    const char* end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(text.data(), end, percent);
    if (error != std::errc() || rest + 1 != end || *rest != '%' || percent < 1 || percent > 1000) {
      throw InvalidArgument(fmt::format(
          "--limits '{}': expected percentages of the baseline peak from 1% to 1000%, e.g. 100%,60%,40%", text));
    }
    if (std::find(percents.begin(), percents.end(), percent) == percents.end()) percents.push_back(percent);
  }
  return percents;
}

std::vector<NamedHeuristic> parse_heuristics(const std::vector<std::string>& names) {
  if (names.empty()) return {kHeuristics.front()};
  std::vector<NamedHeuristic> heuristics;
  for (const auto& name : names) {
    const auto has_name = [&](const NamedHeuristic& known) { return name == known.name; };
    const auto found = std::find_if(kHeuristics.begin(), kHeuristics.end(), has_name);
    if (found == kHeuristics.end()) {
      std::vector<std::string> known;
      for (const auto& heuristic : kHeuristics) known.emplace_back(heuristic.name);
      throw InvalidArgument(
          fmt::format("--heuristics '{}': expected one or more of {}", name, models::list_known(name, known)));
    }
    if (std::none_of(heuristics.begin(), heuristics.end(), has_name)) heuristics.push_back(*found);
  }
  return heuristics;
}

void check_options(const BenchArgs& args) {
  check_can_write(args.json, "--json");
  check_can_write(args.html, "--html");
  if (!args.strategies.empty())
    throw InvalidArgument("--limits: found --strategies as well; a cap needs no regions; leave one out");
  if (!args.depths.empty()) throw InvalidArgument("--limits: found --depths as well; leave one out");
}

/// Loss and gradients of one step.
using Result = std::vector<torch::Tensor>;

class Steps {
 public:
  Steps(models::TrainableModel& model, const models::Batch& batch)
      : model_(model), batch_(batch), generator_(generator_state()) {}

  struct Seen {
    double ms = 0.0;
    Bytes peak = 0;
    Bytes resident_peak = 0;
    Result result;
  };

  /// Forward and backward from the same generator's state.
  Seen run() {
    drop_gradients(model_.module());
    set_generator_state(generator_);
    Seen seen;
    MemoryScope memory;
    const auto begin = std::chrono::steady_clock::now();
    auto loss = model_.loss(batch_);
    loss.backward();
    seen.ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
    seen.peak = memory.peak();
    seen.result.push_back(loss.detach());
    for (const auto& parameter : model_.module().parameters()) seen.result.push_back(parameter.grad());
    return seen;
  }

  /// Not for its time: free memory was given back before.
  Seen run_for_resident() {
    drop_gradients(model_.module());
    const ResidentWatch resident;
    Seen seen = run();
    seen.resident_peak = resident.growth();
    return seen;
  }

  /// A step that counts, after one of its own kind that does not, as in training each step follows one.
  Seen run_settled() {
    run();
    return run();
  }

  /// Likewise under a cap. @param plain  of the same turn.
  void run_under(Row& row, double max_overhead, const Seen& plain, bool counts) {
    under_cap(row, max_overhead, [&](const MemoryCap& cap) {
      check(row, plain, run());
      const auto before = cap.stats();
      const auto seen = run();
      row.cost = difference(cap.stats(), before);
      check(row, plain, seen);
      if (!counts) return;
      row.step_ms.push_back(seen.ms);
      row.added_ms.push_back(seen.ms - plain.ms);
    });
  }

  void run_under_for_resident(Row& row, double max_overhead, const Seen& plain) {
    under_cap(row, max_overhead, [&](const MemoryCap&) { check(row, plain, run_for_resident()); });
  }

 private:
  template <typename Run>
  void under_cap(Row& row, double max_overhead, const Run& run_steps) {
    drop_gradients(model_.module());
    try {
      const MemoryCap cap(memory_stats().current + row.limit,
                          MemoryCapOptions().heuristic(row.heuristic.value).max_overhead(max_overhead));
      run_steps(cap);
    } catch (const OutOfMemory& error) {
      row.refusal = {error.reason() == OutOfMemoryReason::kMaxOverhead, error.missing()};
    }
  }

  static void check(Row& row, const Seen& plain, const Seen& seen) {
    row.peak = std::max(row.peak, seen.peak);
    row.resident_peak = std::max(row.resident_peak, seen.resident_peak);
    for (size_t i = 0; i < plain.result.size(); ++i) {
      // a loss may be a view of something large that was evicted
      const auto pin = seen.result[i].defined() ? std::make_unique<PinScope>(seen.result[i]) : nullptr;
      row.is_bit_equal &= is_bit_equal(plain.result[i], seen.result[i]);
    }
  }

  static MemoryCapStats difference(MemoryCapStats after, const MemoryCapStats& before) {
    after.evictions -= before.evictions;
    after.evicted_bytes -= before.evicted_bytes;
    after.recomputes -= before.recomputes;
    after.recompute_ms -= before.recompute_ms;
    after.policy_ms -= before.policy_ms;
    return after;
  }

  models::TrainableModel& model_;
  const models::Batch& batch_;
  torch::Tensor generator_;
};

struct Limits {
  Bytes base = 0;  ///< level before a step: parameters, buffers, input
  Row plain;
  std::vector<Row> rows;  ///< by limit in the order asked, then by heuristic
  std::optional<PublishedPoint> published;
  bool compares = false;  ///< more than one heuristic

  double overhead(const Row& row) const { return median(row.added_ms) / median(plain.step_ms); }

  /// Of the library's own heuristic, or else the first asked; ties go to the smaller limit. Null if none fits.
  const Row* nearest_to(double percent) const {
    const Row* nearest = nullptr;
    const auto distance = [&](const Row& row) { return std::pair(std::abs(row.percent - percent), row.percent); };
    for (const auto& row : rows) {
      const bool is_comparable = row.fits() && row.heuristic.value == rows.front().heuristic.value;
      if (is_comparable && (!nearest || distance(row) < distance(*nearest))) nearest = &row;
    }
    return nearest;
  }
};

std::string show_refusal(const Refusal& refusal) {
  return refusal.is_of_time ? "exceeds max-overhead"
                            : fmt::format("does not fit: {} missing", format_bytes(refusal.missing));
}

std::string show_table(const Limits& all) {
  std::vector<std::string> columns{"limit"};
  const auto add_heuristic = [&](std::vector<std::string>& cells, const char* text) {
    if (all.compares) cells.emplace_back(text);
  };
  add_heuristic(columns, "heuristic");
  for (const char* name :
       {"bytes", "peak", "resident", "ms/step", "overhead", "evictions", "recomputed", "policy", "bit-equal"})
    columns.emplace_back(name);
  Table table(columns);
  std::vector<std::string> first{"none"};
  add_heuristic(first, "");
  for (const auto& cell : {std::string(), format_bytes(all.plain.peak), format_bytes(all.plain.resident_peak),
                           median_and_spread(all.plain.step_ms)})
    first.push_back(cell);
  first.resize(columns.size());
  table.add(first);
  for (const auto& row : all.rows) {
    std::vector<std::string> cells{fmt::format("{} %", row.percent)};
    add_heuristic(cells, row.heuristic.name);
    cells.push_back(format_bytes(row.limit));
    if (row.fits()) {
      cells.push_back(format_bytes(row.peak) + (row.is_over() ? " OVER" : ""));
      cells.push_back(format_bytes(row.resident_peak));
      cells.push_back(median_and_spread(row.step_ms));
      cells.push_back(fmt::format("{:.0f} %", 100 * all.overhead(row)));
      cells.push_back(fmt::format("{}", row.cost.evictions));
      cells.push_back(fmt::format("{}", row.cost.recomputes));
      cells.push_back(fmt::format("{:.1f} %", 100 * row.cost.policy_ms / row.step_ms.back()));
      cells.push_back(row.is_bit_equal ? "yes" : "NO");
    } else {
      cells.push_back(show_refusal(*row.refusal));
    }
    cells.resize(columns.size());
    table.add(cells);
  }
  return table.str();
}

std::string show_published(const Limits& all) {
  if (!all.published) return "";
  const auto& point = *all.published;
  std::string text =
      fmt::format("{}, {}: {:.0f} % overhead at {:.0f} % ({:g} of {:g} GB, parameters counted); ", point.method,
                  point.model, 100 * point.overhead, point.percent(), point.limit_gb, point.plain_gb);
  const Row* nearest = all.nearest_to(point.percent());
  text += nearest ? fmt::format("here {:.0f} % at {} %", 100 * all.overhead(*nearest), nearest->percent)
                  : std::string("here no limit fits");
  return fmt::format("{}\n  {}\n", text, point.source);
}

Json row_json(const Limits& all, const Row& row) {
  Json json{
      {"percent", row.percent}, {"heuristic", row.heuristic.name}, {"limit_bytes", row.limit}, {"fits", row.fits()}};
  if (!row.fits()) {
    json["refused"] = row.refusal->is_of_time ? "time" : "memory";
    json["missing_bytes"] = row.refusal->missing;
    return json;
  }
  json.update({{"peak_bytes", row.peak},
               {"resident_peak_bytes", row.resident_peak},
               {"step_ms_median", median(row.step_ms)},
               {"step_ms_spread", spread(row.step_ms)},
               {"added_ms_median", median(row.added_ms)},
               {"overhead", all.overhead(row)},
               {"evictions", row.cost.evictions},
               {"evicted_bytes", row.cost.evicted_bytes},
               {"recomputes", row.cost.recomputes},
               {"recompute_ms", row.cost.recompute_ms},
               {"choosing_ms", row.cost.policy_ms},
               {"bit_equal", row.is_bit_equal}});
  return json;
}

Json published_json(const Limits& all) {
  const auto& point = *all.published;
  const Row* nearest = all.nearest_to(point.percent());
  return {{"method", point.method},
          {"model", point.model},
          {"limit_gb", point.limit_gb},
          {"plain_gb", point.plain_gb},
          {"overhead", point.overhead},
          {"source", point.source},
          {"nearest_percent", nearest ? Json(nearest->percent) : Json()},
          {"nearest_overhead", nearest ? Json(all.overhead(*nearest)) : Json()}};
}

/// One turn is the baseline's step, then each row; who comes first moves on by one each time.
void measure_limits(const BenchArgs& args, Steps& steps, Limits& all) {
  const size_t n = all.rows.size();
  for (int i = 0; i < args.warmup + args.iters; ++i) {
    const bool counts = i >= args.warmup;
    const auto seen = steps.run_settled();
    if (counts) all.plain.step_ms.push_back(seen.ms);
    for (size_t k = 0; k < n; ++k) {
      auto& row = all.rows[(k + static_cast<size_t>(i)) % n];
      if (row.fits()) steps.run_under(row, args.max_overhead, seen, counts);
    }
  }
  const auto seen = steps.run_for_resident();
  all.plain.resident_peak = seen.resident_peak;
  for (auto& row : all.rows)
    if (row.fits()) steps.run_under_for_resident(row, args.max_overhead, seen);
}

}  // namespace

int run_limits(const BenchArgs& args) {
  check_options(args);
  keep_heap();
  Limits all;
  const auto heuristics = parse_heuristics(args.heuristics);
  all.compares = heuristics.size() > 1;
  for (const int percent : parse_percents(args.limits)) {
    for (const auto& heuristic : heuristics) all.rows.push_back({.percent = percent, .heuristic = heuristic});
  }
  install_memory_tracking();
  auto model = build_model(args.model);
  all.published = published_point(model->name());
  const auto batch = model->synthetic_batch(args.model.seed);
  torch::manual_seed(args.model.seed);
  all.base = memory_stats().current;
  Steps steps(*model, batch);
  all.plain.peak = steps.run().peak;
  for (auto& row : all.rows) row.limit = all.plain.peak * row.percent / 100;
  measure_limits(args, steps, all);
  drop_gradients(model->module());

  Json config = config_json(*model);
  config["iters"] = args.iters;
  config["warmup"] = args.warmup;
  config["max_overhead"] = args.max_overhead;
  Json document = document_json("limits", model->name(), config);
  document["base_bytes"] = all.base;
  document["plain"] = {{"peak_bytes", all.plain.peak},
                       {"resident_peak_bytes", all.plain.resident_peak},
                       {"step_ms_median", median(all.plain.step_ms)},
                       {"step_ms_spread", spread(all.plain.step_ms)}};
  document["rows"] = Json::array();
  for (const auto& row : all.rows) document["rows"].push_back(row_json(all, row));
  document["published"] = Json::array();
  if (all.published) document["published"].push_back(published_json(all));
  publish(document,
          fmt::format(
              "{}, {} {} a step, {} steps each, {} threads; bytes over the level before the step, which is {}\n{}{}",
              title(*model), model->units_per_batch(), model->unit(), args.iters, at::get_num_threads(),
              format_bytes(all.base), show_table(all), show_published(all)),
          args.json, args.html);
  return kOk;
}

}  // namespace refrain::cli
