#pragma once

#include <cstdint>
#include <string>

namespace refrain::report {

/// A number of a document as it is shown: what stands on the page, and the exact one behind it.
struct Number {
  std::string shown;         ///< rounded, perhaps in another unit; no unit behind it
  std::string exact;         ///< as in the document; `a/b` if it is a ratio of two
  std::string tooltip = {};  ///< plain text with the exact number and its unit; empty if `shown` is exact
  bool is_ratio = false;

  std::string html() const;
  std::string svg() const;  ///< a tspan
};

/// The unit in which a chart or a table shows bytes: MiB, unless its largest number asks for another.
struct ByteUnit {
  const char* name;
  double bytes;
  int decimals;  ///< of numbers; enough that the largest has three digits or more

  double of(int64_t n) const { return static_cast<double>(n) / bytes; }
};

/// MiB from 1 MiB on, up to 99,999 MiB.
ByteUnit unit_for(int64_t largest);

Number number_of(int64_t bytes, const ByteUnit& unit);
Number exact_bytes(int64_t bytes);  ///< "15,240,200"
Number count(int64_t n);            ///< with thousands separators
Number identifier(int64_t n);       ///< sizes, seeds: without separators
Number plain(double value);         ///< of any unit, three digits or more
Number milliseconds(double ms);
Number microseconds_as_ms(double us);

Number percent(double part, double whole);  ///< "27 %"; a dash if `whole` is 0
Number saving(double part, double whole);   ///< 1 - part/whole as percent
Number percent_of_one(double fraction);     ///< a fraction of the document as percent
Number factor(double ratio);                ///< a factor of the document as "3.2×"

/// Digits grouped by commas; `decimals` behind the point.
std::string grouped(double value, int decimals);
std::string grouped(int64_t value);

/// Shortest text that reads back as the same number, as in JSON.
std::string exact(double value);

}  // namespace refrain::report
