#include "plan/frontier.h"

#include <algorithm>

namespace refrain::plan {

namespace {

/// Numbers of seven bits a byte, the lowest first; signed ones as 0, -1, 1, -2, ...
class Writer {
 public:
  explicit Writer(std::vector<uint8_t>& bytes) : bytes_(bytes) {}

  void add(uint64_t number) {
    for (; number >= 0x80; number >>= 7) bytes_.push_back(static_cast<uint8_t>(number | 0x80));
    bytes_.push_back(static_cast<uint8_t>(number));
  }
  void add_signed(int64_t number) {
    add(number < 0 ? 2 * static_cast<uint64_t>(-(number + 1)) + 1 : 2 * static_cast<uint64_t>(number));
  }

 private:
  std::vector<uint8_t>& bytes_;
};

class Reader {
 public:
  explicit Reader(const std::vector<uint8_t>& bytes) : at_(bytes.data()) {}

  uint64_t next() {
    uint64_t number = 0;
    for (int shift = 0;; shift += 7) {
      const uint8_t byte = *at_++;
      number |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return number;
    }
  }
  int64_t next_signed() {
    const uint64_t number = next();
    return number % 2 == 1 ? -static_cast<int64_t>(number / 2) - 1 : static_cast<int64_t>(number / 2);
  }

 private:
  const uint8_t* at_;
};

}  // namespace

PackedStays::PackedStays(const Stays& stays) : values_(stays.size()) {
  Writer writer(bytes_);
  int64_t before = 0;  // of the value before: results of neighbours begin near each other
  for (const auto& of_value : stays) {
    writer.add(of_value.size());
    int64_t last = before;
    for (const Stay& stay : of_value) {
      writer.add_signed(stay.from - last);
      writer.add_signed(stay.to - stay.from);
      last = stay.to;
    }
    if (!of_value.empty()) before = of_value.front().from;
  }
  bytes_.shrink_to_fit();
}

Stays PackedStays::unpack() const {
  Stays stays(values_);
  Reader reader(bytes_);
  int64_t before = 0;
  for (auto& of_value : stays) {
    of_value.resize(reader.next());
    int64_t last = before;
    for (Stay& stay : of_value) {
      stay.from = static_cast<OpId>(last + reader.next_signed());
      stay.to = static_cast<OpId>(stay.from + reader.next_signed());
      last = stay.to;
    }
    if (!of_value.empty()) before = of_value.front().from;
  }
  return stays;
}

const Point* Frontier::best(int64_t budget) const {
  const auto above = std::upper_bound(points_.begin(), points_.end(), budget,
                                      [](int64_t bytes, const Point& point) { return bytes < point.peak; });
  return above == points_.begin() ? nullptr : &*(above - 1);
}

bool Frontier::would_take(int64_t peak, int64_t added_ns) const {
  const Point* known = best(peak);
  return known == nullptr || known->added_ns > added_ns;
}

void Frontier::add(Point point) {
  if (!would_take(point.peak, point.added_ns)) return;
  const auto first = std::lower_bound(points_.begin(), points_.end(), point.peak,
                                      [](const Point& known, int64_t peak) { return known.peak < peak; });
  auto last = first;
  while (last != points_.end() && last->added_ns >= point.added_ns) ++last;
  if (first == last) {
    points_.insert(first, std::move(point));
  } else {
    *first = std::move(point);
    points_.erase(first + 1, last);
  }
  if (points_.size() > most_) thin();
}

void Frontier::add(const State& state, const std::string& solver, int64_t spacing) {
  const Point* known = best(state.peak());
  if (known == nullptr || (known->added_ns > state.added_ns() && known->peak <= state.peak() - spacing))
    add({state.peak(), state.added_ns(), solver, PackedStays(state.stays()), {}});
}

/// Cost of removing a point: bytes up to the next, by time over the one before.
void Frontier::thin() {
  size_t least = 1;
  double least_loss = -1.0;
  for (size_t k = 1; k + 1 < points_.size(); ++k) {
    const double loss = static_cast<double>(points_[k + 1].peak - points_[k].peak) *
                        static_cast<double>(points_[k - 1].added_ns - points_[k].added_ns);
    if (least_loss >= 0.0 && loss >= least_loss) continue;
    least_loss = loss;
    least = k;
  }
  points_.erase(points_.begin() + static_cast<int64_t>(least));
}

}  // namespace refrain::plan
