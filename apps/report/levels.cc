#include "apps/report/levels.h"

#include <algorithm>

#include "apps/report/kinds.h"

namespace refrain::report {
std::vector<LevelPoint> read_points(const Field& list) {
  std::vector<LevelPoint> points;
  for (const Field& item : list.items()) {
    const auto pair = item.items();
    if (pair.size() != 2) item.refuse("a pair of time in µs and bytes");
    points.push_back({pair[0].number(), pair[1].bytes()});
    const size_t n = points.size();
    if (n > 1 && points[n - 1].t_us < points[n - 2].t_us)
      pair[0].refuse("a time not before that of the point before it");
  }
  return points;
}

namespace {

/// Walks along points as time passes.
class Cursor {
 public:
  explicit Cursor(const std::vector<LevelPoint>& points) : points_(points) {}

  int64_t at(double t_us) {
    while (next_ < points_.size() && points_[next_].t_us <= t_us) ++next_;
    return next_ == 0 ? 0 : points_[next_ - 1].bytes;
  }

 private:
  const std::vector<LevelPoint>& points_;
  size_t next_ = 0;
};

}  // namespace

std::vector<Level> read_levels(const Field& document) {
  const auto total = read_points(document["points"]);
  std::vector<std::vector<LevelPoint>> by_kind(kinds().size());
  bool is_row_by_row = true;
  for (const auto& [name, list] : document["kinds"].members()) {
    const auto kind = kind_index(name);
    if (!kind) list.refuse("a member named for a kind of memory, one of " + kind_ids());
    by_kind[*kind] = read_points(list);
    is_row_by_row =
        is_row_by_row && std::equal(by_kind[*kind].begin(), by_kind[*kind].end(), total.begin(), total.end(),
                                    [](const LevelPoint& a, const LevelPoint& b) { return a.t_us == b.t_us; });
  }

  std::vector<Level> levels;
  if (is_row_by_row) {
    for (size_t i = 0; i < total.size(); ++i) {
      Level level{.t_us = total[i].t_us, .by_kind = {}, .total = total[i].bytes};
      for (const auto& points : by_kind) level.by_kind.push_back(points.empty() ? 0 : points[i].bytes);
      levels.push_back(std::move(level));
    }
    return levels;
  }
  std::vector<double> times;
  for (const auto& point : total) times.push_back(point.t_us);
  for (const auto& points : by_kind) {
    for (const auto& point : points) times.push_back(point.t_us);
  }
  std::sort(times.begin(), times.end());
  times.erase(std::unique(times.begin(), times.end()), times.end());
  Cursor all(total);
  std::vector<Cursor> cursors(by_kind.begin(), by_kind.end());
  for (const double t : times) {
    Level level{.t_us = t, .by_kind = {}, .total = all.at(t)};
    for (auto& cursor : cursors) level.by_kind.push_back(cursor.at(t));
    levels.push_back(std::move(level));
  }
  return levels;
}

std::vector<Level> thin_out(const std::vector<Level>& levels, size_t columns) {
  if (levels.size() <= 2 * columns || columns == 0) return levels;
  const double begin = levels.front().t_us, span = std::max(levels.back().t_us - begin, 1e-9);
  std::vector<Level> kept;
  for (size_t i = 0; i < levels.size();) {
    const auto column = [&](size_t k) {
      return static_cast<size_t>((levels[k].t_us - begin) / span * static_cast<double>(columns));
    };
    size_t low = i, high = i, end = i;
    for (; end < levels.size() && column(end) == column(i); ++end) {
      if (levels[end].total < levels[low].total) low = end;
      if (levels[end].total > levels[high].total) high = end;
    }
    kept.push_back(levels[std::min(low, high)]);
    if (low != high) kept.push_back(levels[std::max(low, high)]);
    i = end;
  }
  return kept;
}

int64_t highest_within(const std::vector<Level>& levels, double begin_us, double end_us) {
  int64_t highest = 0;
  for (size_t i = 0; i < levels.size(); ++i) {
    const bool has_ended = i + 1 < levels.size() && levels[i + 1].t_us <= begin_us;
    if (levels[i].t_us <= end_us && !has_ended) highest = std::max(highest, levels[i].total);
  }
  return highest;
}

}  // namespace refrain::report
