#include <fmt/format.h>

#include <filesystem>

#include "apps/refrain/commands.h"
#include "apps/refrain/json_file.h"
#include "apps/refrain/table.h"
#include "refrain/bytes.h"
#include "refrain/error.h"

namespace refrain::cli {
namespace {

/// The fields of a `train --json` report that are compared.
struct Report {
  std::string name, strategy;
  bool is_done = false;
  Bytes peak = 0, limit = 0;  ///< limit 0: none
  Bytes resident_peak = 0;    ///< 0 in reports of older versions
  Bytes process_limit = 0;    ///< 0: none, or as above
  double step_ms = 0.0;
  int64_t first_step = 0;
  std::vector<std::string> loss_bits;
  double last_loss = 0.0;

  std::string limit_cell() const {
    if (process_limit > 0) return format_bytes(process_limit) + " resident";
    return limit == 0 ? "none" : format_bytes(limit);
  }
};

Report read_report(const std::string& path) {
  const Json json = read_document(path, "train", "a report of 'refrain train --json'");
  try {
    Report report;
    report.name = std::filesystem::path(path).stem().string();
    report.strategy = json.at("strategy").get<std::string>();
    report.is_done = json.at("status") == "done";
    report.peak = json.at("peak_bytes").get<Bytes>();
    report.resident_peak = json.value("resident_peak_bytes", Bytes{0});
    report.limit = json.at("memory_limit_bytes").is_null() ? 0 : json.at("memory_limit_bytes").get<Bytes>();
    if (const auto found = json.find("process_limit_bytes"); found != json.end() && !found->is_null())
      report.process_limit = found->get<Bytes>();
    report.step_ms = json.at("step_ms_median").get<double>();
    report.first_step = json.at("first_step").get<int64_t>();
    report.loss_bits = json.at("loss_bits").get<std::vector<std::string>>();
    const auto& losses = json.at("losses");
    if (!losses.empty() && losses.back().is_number()) report.last_loss = losses.back().get<double>();
    return report;
  } catch (const Json::exception&) {
    throw FormatError(
        fmt::format("'{}': found JSON of something else; expected a report of 'refrain train --json'", path));
  }
}

/// Steps, of those both runs did, whose losses are equal to the bit.
struct Agreement {
  size_t equal = 0, common = 0;
  int64_t first_difference = 0;  ///< step number, 0 if none
};

Agreement agree(const Report& a, const Report& b) {
  Agreement result;
  const int64_t begin = std::max(a.first_step, b.first_step);
  for (int64_t step = begin;; ++step) {
    const auto i = static_cast<size_t>(step - a.first_step), j = static_cast<size_t>(step - b.first_step);
    if (i >= a.loss_bits.size() || j >= b.loss_bits.size()) return result;
    ++result.common;
    if (a.loss_bits[i] == b.loss_bits[j]) {
      ++result.equal;
    } else if (result.first_difference == 0) {
      result.first_difference = step + 1;
    }
  }
}

std::string losses_cell(const Report& report, const Agreement& agreement) {
  if (!report.is_done) return fmt::format("out of memory at step {}", report.first_step + report.loss_bits.size() + 1);
  if (agreement.common == 0) return "no step in common";
  if (agreement.first_difference != 0) return fmt::format("DIFFER from step {}", agreement.first_difference);
  return fmt::format("{} of {} equal to the bit", agreement.equal, agreement.common);
}

}  // namespace

int run_compare(const CompareArgs& args) {
  check_can_write(args.json, "--json");
  std::vector<Report> reports;
  for (const auto& file : args.files) reports.push_back(read_report(file));
  const Report& reference = reports.front();
  if (!reference.is_done) {
    throw InvalidArgument(fmt::format(
        "'{}': found a run that ran out of memory; expected a finished one as the reference; name another file first",
        args.files.front()));
  }
  Table table({"run", "strategy", "limit", "peak", "resident", "ms/step", "time", "last loss", "losses"});
  Json rows = Json::array();
  bool is_all_equal = true;
  for (const auto& report : reports) {
    const bool is_reference = &report == &reference;
    const auto agreement = agree(reference, report);
    const bool is_equal = agreement.common > 0 && agreement.first_difference == 0;
    if (report.is_done) is_all_equal = is_all_equal && is_equal;
    table.add({report.name, report.strategy, report.limit_cell(), format_bytes(report.peak),
               report.resident_peak > 0 ? format_bytes(report.resident_peak) : "-",
               report.is_done ? fmt::format("{:.1f}", report.step_ms) : "-",
               report.is_done ? fmt::format("x{:.2f}", report.step_ms / reference.step_ms) : "-",
               report.is_done ? fmt::format("{:.4f}", report.last_loss) : "-",
               is_reference ? "reference" : losses_cell(report, agreement)});
    rows.push_back({{"run", report.name},
                    {"strategy", report.strategy},
                    {"status", report.is_done ? "done" : "out_of_memory"},
                    {"memory_limit_bytes", report.limit == 0 ? Json() : Json(report.limit)},
                    {"process_limit_bytes", report.process_limit == 0 ? Json() : Json(report.process_limit)},
                    {"peak_bytes", report.peak},
                    {"resident_peak_bytes", report.resident_peak > 0 ? Json(report.resident_peak) : Json()},
                    {"step_ms_median", report.step_ms},
                    {"steps_compared", agreement.common},
                    {"steps_equal", agreement.equal},
                    {"first_difference", agreement.first_difference == 0 ? Json() : Json(agreement.first_difference)}});
  }
  if (args.json != "-") fmt::print("{}", table.str());
  Json document = new_document("compare");
  document["equal"] = is_all_equal;
  document["runs"] = rows;
  write_json(args.json, document);
  return is_all_equal ? kOk : kDiffers;
}

}  // namespace refrain::cli
