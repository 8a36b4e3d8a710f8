#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace refrain {

/// Byte counts: `300_MiB`, `2_GiB`. Binary units only; the type is plain `int64_t`, so arithmetic is arithmetic.
using Bytes = int64_t;

inline namespace literals {
constexpr Bytes operator""_B(unsigned long long n) { return static_cast<Bytes>(n); }
constexpr Bytes operator""_KiB(unsigned long long n) { return static_cast<Bytes>(n) << 10; }
constexpr Bytes operator""_MiB(unsigned long long n) { return static_cast<Bytes>(n) << 20; }
constexpr Bytes operator""_GiB(unsigned long long n) { return static_cast<Bytes>(n) << 30; }
}  // namespace literals

/// "12.3 MiB"; the largest unit in which the number, rounded to one decimal, is at least 1; below 1 KiB "512 B".
/// Negative numbers keep their sign.
std::string format_bytes(Bytes n);

/// Reads "300MiB", "2 GiB", "1.5GB", "4096", "4096B", "64k". Suffixes are case-insensitive; KB/MB/GB are powers of 1000,
/// KiB/MiB/GiB and a bare K/M/G powers of 1024; T likewise. What a fraction leaves of a byte is dropped.
/// @throws InvalidArgument on anything else, on negative numbers and on overflow.
Bytes parse_bytes(std::string_view text);

}  // namespace refrain
