#include "refrain/bytes.h"

#include <array>
#include <cstddef>
#include <limits>
#include <string>
#include <string_view>

#include "refrain/error.h"

namespace refrain {
namespace {

__extension__ using Wide = unsigned __int128;

constexpr Bytes kMaxBytes = std::numeric_limits<Bytes>::max();

struct Unit {
  std::string_view suffix;
  uint64_t bytes;
};

constexpr std::array<Unit, 14> kReadable{{
    {"", 1},
    {"b", 1},
    {"k", 1ull << 10},
    {"kib", 1ull << 10},
    {"kb", 1'000},
    {"m", 1ull << 20},
    {"mib", 1ull << 20},
    {"mb", 1'000'000},
    {"g", 1ull << 30},
    {"gib", 1ull << 30},
    {"gb", 1'000'000'000},
    {"t", 1ull << 40},
    {"tib", 1ull << 40},
    {"tb", 1'000'000'000'000},
}};

constexpr std::array<Unit, 6> kPrintable{{
    {"KiB", 1ull << 10},
    {"MiB", 1ull << 20},
    {"GiB", 1ull << 30},
    {"TiB", 1ull << 40},
    {"PiB", 1ull << 50},
    {"EiB", 1ull << 60},
}};

// <cctype> depends on the locale
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_space(char c) { return c == ' ' || c == '\t'; }
char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

std::string_view trim(std::string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

std::string_view take_digits(std::string_view& text) {
  size_t n = 0;
  while (n < text.size() && is_digit(text[n])) ++n;
  const std::string_view digits = text.substr(0, n);
  text.remove_prefix(n);
  return digits;
}

const Unit* find_unit(std::string_view suffix) {
  std::string key;
  for (char c : suffix) key += lower(c);
  for (const Unit& unit : kReadable) {
    if (unit.suffix == key) return &unit;
  }
  return nullptr;
}

[[noreturn]] void refuse(std::string_view text, const std::string& why) {
  throw InvalidArgument("[refrain::parse_bytes] cannot read `" + std::string(text) + "` as a number of bytes: " + why +
                        "; write it like `300MiB`, `1.5GB` or `4096`");
}

}  // namespace

std::string format_bytes(Bytes n) {
  const std::string sign = n < 0 ? "-" : "";
  // negating in unsigned arithmetic is defined for the smallest int64 as well
  const uint64_t magnitude = n < 0 ? 0 - static_cast<uint64_t>(n) : static_cast<uint64_t>(n);
  if (magnitude < kPrintable.front().bytes) return sign + std::to_string(magnitude) + " B";

  size_t i = 0;
  while (i + 1 < kPrintable.size() && magnitude >= kPrintable[i + 1].bytes) ++i;
  const uint64_t unit = kPrintable[i].bytes;
  uint64_t whole = magnitude / unit;
  uint64_t tenths = (magnitude % unit * 10 + unit / 2) / unit;
  if (tenths == 10) {
    ++whole;
    tenths = 0;
  }
  if (whole == 1024 && i + 1 < kPrintable.size()) {
    whole = 1;
    ++i;
  }
  return sign + std::to_string(whole) + "." + std::to_string(tenths) + " " + std::string(kPrintable[i].suffix);
}

Bytes parse_bytes(std::string_view text) {
  std::string_view rest = trim(text);
  if (rest.empty()) refuse(text, "found nothing, expected a number");
  if (rest.front() == '-') refuse(text, "it is negative, expected 0 or more");
  const std::string_view whole = take_digits(rest);
  if (whole.empty()) refuse(text, "it does not begin with a digit");
  std::string_view fraction;
  if (!rest.empty() && rest.front() == '.') {
    rest.remove_prefix(1);
    fraction = take_digits(rest);
    if (fraction.empty()) refuse(text, "no digit follows the point");
  }
  rest = trim(rest);
  const Unit* unit = find_unit(rest);
  if (!unit)
    refuse(text,
           "unknown unit `" + std::string(rest) + "`, expected B, KiB, MiB, GiB, TiB, KB, MB, GB, TB, K, M, G or T");
  if (!fraction.empty() && unit->bytes == 1) refuse(text, "a byte cannot be divided");

  const auto check = [&](Wide value) {
    if (value > static_cast<Wide>(kMaxBytes))
      refuse(text, "it is above the largest number, " + std::to_string(kMaxBytes) + " bytes");
    return value;
  };
  Wide total = 0;
  for (char c : whole) total = check(total * 10 + static_cast<Wide>(c - '0'));
  total = check(total * unit->bytes);

  // 18 decimals of the largest unit are less than a millionth of a byte
  Wide numerator = 0;
  Wide denominator = 1;
  for (char c : fraction.substr(0, 18)) {
    numerator = numerator * 10 + static_cast<Wide>(c - '0');
    denominator *= 10;
  }
  return static_cast<Bytes>(check(total + numerator * unit->bytes / denominator));
}

}  // namespace refrain
