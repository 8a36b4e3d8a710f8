#include "apps/report/scale.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "apps/report/numbers.h"

namespace refrain::report {
namespace {

constexpr double kSlack = 1e-9;

double round_step(double rough) {
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  for (const double digit : {1.0, 2.0, 5.0}) {
    if (digit * power >= rough * (1 - kSlack)) return digit * power;
  }
  return 10 * power;
}

double step_of(const std::vector<double>& ticks) { return ticks.size() > 1 ? ticks[1] - ticks[0] : 1; }

Axis linear(double low, double high, int about, std::string title) {
  Axis axis;
  axis.ticks = round_ticks(low, high, about);
  axis.low = axis.ticks.front();
  axis.high = axis.ticks.back();
  axis.title = std::move(title);
  const double step = step_of(axis.ticks);
  axis.label = [step](double value) { return tick_label(value, step); };
  return axis;
}

}  // namespace

std::vector<double> round_ticks(double low, double high, int about) {
  double span = high - low;
  // also when the two differ by no more than their rounding
  if (span <= std::abs(high) * 1e-12) span = high == 0 ? 1 : std::abs(high);
  const double step = round_step(span / std::max(about, 1));
  const double first = std::floor(low / step * (1 + (low < 0 ? -kSlack : kSlack)));
  double last = std::ceil(high / step * (1 - (high < 0 ? -kSlack : kSlack)));
  if (last <= first) last = first + 1;
  std::vector<double> ticks;
  for (double i = first; i <= last; ++i) ticks.push_back(i * step);
  return ticks;
}

double Scale::operator()(double value) const {
  const double part = is_log ? std::log(value / low) / std::log(high / low) : (value - low) / (high - low);
  return from + part * (to - from);
}

Axis Axis::from_zero(double high, int about, std::string title) {
  return linear(0, std::max(high, 0.0), about, std::move(title));
}

Axis Axis::around(double low, double high, int about, std::string title) {
  return linear(low >= 0 && low < 0.4 * high ? 0 : low, high, about, std::move(title));
}

Axis Axis::within(double low, double high, int about, std::string title) {
  Axis axis = linear(low, high, about, std::move(title));
  if (low < high) {
    axis.low = low;
    axis.high = high;
    std::erase_if(axis.ticks, [&](double tick) { return tick < low || tick > high; });
  }
  return axis;
}

Axis Axis::at_values(std::vector<double> values, std::string title) {
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  if (values.empty()) values = {0};
  Axis axis;
  axis.low = values.front();
  axis.high = values.back();
  axis.is_log = axis.low > 0 && axis.high > 12 * axis.low;
  if (axis.low == axis.high) {
    axis.low -= 1;
    axis.high += 1;
  }
  axis.ticks = std::move(values);
  axis.title = std::move(title);
  axis.label = [](double value) { return grouped(value, value == std::floor(value) ? 0 : 2); };
  return axis;
}

std::vector<double> spread(const std::vector<double>& wanted, double gap, double low, double high) {
  std::vector<size_t> order(wanted.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return wanted[a] < wanted[b]; });
  // labels that touch move as one block, to the mean of where its first would have to be
  struct Block {
    double sum = 0;
    size_t size = 0;
  };
  std::vector<Block> blocks;
  const auto start = [&](const Block& block) {
    const double n = static_cast<double>(block.size);
    return std::max(std::min(block.sum / n, high - (n - 1) * gap), low);
  };
  for (const size_t i : order) {
    blocks.push_back({wanted[i], 1});
    while (blocks.size() > 1) {
      const Block last = blocks.back(), before = blocks[blocks.size() - 2];
      const double length = static_cast<double>(before.size) * gap;
      if (start(before) + length <= start(last)) break;
      blocks.pop_back();
      blocks.back() = {before.sum + last.sum - static_cast<double>(last.size) * length, before.size + last.size};
    }
  }
  std::vector<double> at(wanted.size());
  size_t k = 0;
  for (const Block& block : blocks) {
    for (size_t i = 0; i < block.size; ++i) at[order[k++]] = start(block) + static_cast<double>(i) * gap;
  }
  return at;
}

std::string tick_label(double value, double step) {
  const int decimals = std::clamp(static_cast<int>(std::ceil(-std::log10(step) - kSlack)), 0, 12);
  return grouped(value, decimals);
}

}  // namespace refrain::report
