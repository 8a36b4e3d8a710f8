#include "apps/report/numbers.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "apps/report/markup.h"

namespace refrain::report {
namespace {

constexpr const char* kMinus = "−";

struct Unit {
  const char* name;
  double bytes;
};

constexpr std::array<Unit, 7> kUnits{{{"B", 1},
                                      {"KiB", 1024.0},
                                      {"MiB", 1048576.0},
                                      {"GiB", 1073741824.0},
                                      {"TiB", 1099511627776.0},
                                      {"PiB", 1125899906842624.0},
                                      {"EiB", 1152921504606846976.0}}};
constexpr size_t kMib = 2;
constexpr double kMostOfAUnit = 1e5;

int decimals_for(double largest) { return largest >= 1000 ? 0 : largest >= 100 ? 1 : largest >= 1 ? 2 : 3; }

std::string group(std::string digits) {
  size_t end = digits.find('.');
  if (end == std::string::npos) end = digits.size();
  for (size_t i = end; i > 3; i -= 3) digits.insert(i - 3, 1, ',');
  return digits;
}

std::string sign(bool is_negative) { return is_negative ? kMinus : ""; }

Number ratio(double part, double whole, double value) {
  if (whole == 0 || !std::isfinite(value)) return {.shown = "–", .exact = ""};
  const double percents = 100 * value;
  const int decimals = std::abs(percents) < 9.95 && percents != 0 ? 1 : 0;
  return {.shown = grouped(percents, decimals) + " %", .exact = exact(part) + "/" + exact(whole), .is_ratio = true};
}

}  // namespace

std::string grouped(double value, int decimals) {
  const std::string digits = fmt::format("{:.{}f}", std::abs(value), decimals);
  const bool is_zero = digits.find_first_not_of("0.") == std::string::npos;
  return sign(value < 0 && !is_zero) + group(digits);
}

std::string grouped(int64_t value) {
  // negating in unsigned arithmetic is defined for the smallest int64 as well
  const uint64_t magnitude = value < 0 ? 0 - static_cast<uint64_t>(value) : static_cast<uint64_t>(value);
  return sign(value < 0) + group(std::to_string(magnitude));
}

std::string exact(double value) {
  if (value == std::floor(value) && std::abs(value) < 1e15) return std::to_string(static_cast<int64_t>(value));
  return nlohmann::json(value).dump();
}

std::string Number::html() const {
  if (exact.empty()) return escape(shown);
  return fmt::format("<data {}=\"{}\"{}>{}</data>", is_ratio ? "class=\"ratio\" value" : "value", escape(exact),
                     tooltip.empty() ? "" : fmt::format(" title=\"{}\"", escape(tooltip)), escape(shown));
}

std::string Number::svg() const {
  if (exact.empty()) return escape(shown);
  return fmt::format("<tspan {}=\"{}\">{}</tspan>", is_ratio ? "data-ratio" : "data-value", escape(exact),
                     escape(shown));
}

ByteUnit unit_for(int64_t largest) {
  const double bytes = static_cast<double>(largest);
  size_t i = kMib;
  while (i + 1 < kUnits.size() && bytes / kUnits[i].bytes >= kMostOfAUnit) ++i;
  while (i > 0 && bytes > 0 && bytes < kUnits[i].bytes) --i;
  return {kUnits[i].name, kUnits[i].bytes, i == 0 ? 0 : decimals_for(bytes / kUnits[i].bytes)};
}

Number number_of(int64_t bytes, const ByteUnit& unit) {
  return {.shown = grouped(unit.of(bytes), unit.decimals),
          .exact = std::to_string(bytes),
          .tooltip = grouped(bytes) + " bytes"};
}

Number exact_bytes(int64_t bytes) { return {.shown = grouped(bytes), .exact = std::to_string(bytes)}; }

Number count(int64_t n) { return {.shown = grouped(n), .exact = std::to_string(n)}; }

Number identifier(int64_t n) { return {.shown = std::to_string(n), .exact = std::to_string(n)}; }

Number plain(double value) {
  const bool is_whole = value == std::floor(value) && std::abs(value) < 1e15;
  return {.shown = grouped(value, is_whole ? 0 : decimals_for(std::abs(value))),
          .exact = exact(value),
          .tooltip = is_whole ? "" : exact(value)};
}

Number milliseconds(double ms) {
  return {.shown = grouped(ms, std::abs(ms) >= 1000 ? 0
                               : std::abs(ms) >= 10 ? 1
                                                    : 2),
          .exact = exact(ms),
          .tooltip = exact(ms) + " ms"};
}

Number microseconds_as_ms(double us) {
  const double ms = us / 1000;
  return {.shown = grouped(ms, ms >= 1000 ? 0 : ms >= 10 ? 1 : 2), .exact = exact(us), .tooltip = exact(us) + " µs"};
}

Number percent(double part, double whole) { return ratio(part, whole, part / whole); }

Number saving(double part, double whole) { return ratio(part, whole, 1 - part / whole); }

Number percent_of_one(double fraction) {
  Number number = ratio(fraction, 1, fraction);
  number.exact = exact(fraction);
  number.tooltip = exact(fraction);
  number.is_ratio = false;
  return number;
}

Number factor(double ratio) {
  return {.shown = grouped(ratio, ratio >= 100  ? 0
                                  : ratio >= 10 ? 1
                                                : 2) +
                   "×",
          .exact = exact(ratio),
          .tooltip = exact(ratio)};
}

}  // namespace refrain::report
