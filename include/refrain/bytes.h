#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "refrain/api.h"

namespace refrain {

/// A byte count: `300_MiB`, `2_GiB`. Binary units only; the type is plain `int64_t`, so arithmetic is arithmetic.
using Bytes = int64_t;

inline namespace literals {
constexpr Bytes operator""_B(unsigned long long n) { return static_cast<Bytes>(n); }
constexpr Bytes operator""_KiB(unsigned long long n) { return static_cast<Bytes>(n) << 10; }
constexpr Bytes operator""_MiB(unsigned long long n) { return static_cast<Bytes>(n) << 20; }
constexpr Bytes operator""_GiB(unsigned long long n) { return static_cast<Bytes>(n) << 30; }
}  // namespace literals

/// Writes a byte count for people: "12.3 MiB".
///
/// @return the number in the largest unit in which it, rounded to one decimal, is at least 1; below 1 KiB "512 B".
///         Negative numbers keep their sign.
[[nodiscard]] REFRAIN_API std::string format_bytes(Bytes n);

/// Reads a byte count that a person wrote: "300MiB", "2 GiB", "1.5GB", "4096", "4096B", "64k".
///
/// - Suffixes are case-insensitive.
/// - KB, MB, GB and TB are powers of 1000; KiB, MiB, GiB, TiB and a bare K, M, G or T are powers of 1024.
/// - What a fraction leaves of a byte is dropped.
/// @return bytes >= 0.
/// @throws InvalidArgument  on anything else, on negative numbers and on overflow.
REFRAIN_API Bytes parse_bytes(std::string_view text);

}  // namespace refrain
