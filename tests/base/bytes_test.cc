#include "refrain/bytes.h"

#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <string>

#include "refrain/error.h"

namespace refrain {
namespace {

constexpr Bytes kMost = std::numeric_limits<Bytes>::max();
constexpr Bytes kLeast = std::numeric_limits<Bytes>::min();

std::string message_of(std::string_view text) {
  try {
    parse_bytes(text);
  } catch (const InvalidArgument& e) {
    return e.what();
  }
  return "accepted";
}

TEST(FormatBytes, UsesTheLargestUnitThatReachesOne) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(1), "1 B");
  EXPECT_EQ(format_bytes(1023), "1023 B");
  EXPECT_EQ(format_bytes(1024), "1.0 KiB");
  EXPECT_EQ(format_bytes(1536), "1.5 KiB");
  EXPECT_EQ(format_bytes(12_MiB + 300_KiB), "12.3 MiB");
  EXPECT_EQ(format_bytes(2_GiB), "2.0 GiB");
  EXPECT_EQ(format_bytes(3_GiB << 10), "3.0 TiB");
  EXPECT_EQ(format_bytes(3_GiB << 20), "3.0 PiB");
}

TEST(FormatBytes, RoundsIntoTheNextUnitRatherThanTo1024) {
  EXPECT_EQ(format_bytes(1_MiB - 1), "1.0 MiB");
  EXPECT_EQ(format_bytes(1_GiB - 1), "1.0 GiB");
  EXPECT_EQ(format_bytes(1_MiB - 52), "1023.9 KiB");
}

TEST(FormatBytes, KeepsTheSign) {
  EXPECT_EQ(format_bytes(-5), "-5 B");
  EXPECT_EQ(format_bytes(-1536), "-1.5 KiB");
  EXPECT_EQ(format_bytes(kMost), "8.0 EiB");
  EXPECT_EQ(format_bytes(kLeast), "-8.0 EiB");
}

TEST(ParseBytes, ReadsEveryUnit) {
  EXPECT_EQ(parse_bytes("4096"), 4096);
  EXPECT_EQ(parse_bytes("4096B"), 4096);
  EXPECT_EQ(parse_bytes("0"), 0);
  EXPECT_EQ(parse_bytes("64k"), 64_KiB);
  EXPECT_EQ(parse_bytes("64KB"), 64'000);
  EXPECT_EQ(parse_bytes("64KiB"), 64_KiB);
  EXPECT_EQ(parse_bytes("300MiB"), 300_MiB);
  EXPECT_EQ(parse_bytes("300M"), 300_MiB);
  EXPECT_EQ(parse_bytes("300MB"), 300'000'000);
  EXPECT_EQ(parse_bytes("2 GiB"), 2_GiB);
  EXPECT_EQ(parse_bytes("2G"), 2_GiB);
  EXPECT_EQ(parse_bytes("2gb"), 2'000'000'000);
  EXPECT_EQ(parse_bytes("1TiB"), 1_GiB << 10);
  EXPECT_EQ(parse_bytes("1TB"), 1'000'000'000'000);
}

TEST(ParseBytes, IgnoresCaseAndOuterSpaces) {
  EXPECT_EQ(parse_bytes("  3 mIb\t"), 3_MiB);
  EXPECT_EQ(parse_bytes("7 b"), 7);
}

TEST(ParseBytes, FractionsAreExactAndRoundDown) {
  EXPECT_EQ(parse_bytes("1.5GB"), 1'500'000'000);
  EXPECT_EQ(parse_bytes("1.50 KiB"), 1536);
  EXPECT_EQ(parse_bytes("0.1GiB"), 107'374'182);
  EXPECT_EQ(parse_bytes("0.001KB"), 1);
  EXPECT_EQ(parse_bytes("0.0009KB"), 0);
  EXPECT_EQ(parse_bytes("0.99999999999999999999999999999KiB"), 1023);
}

TEST(ParseBytes, ReachesTheLargestNumberAndNoFurther) {
  EXPECT_EQ(parse_bytes("9223372036854775807"), kMost);
  EXPECT_THROW(parse_bytes("9223372036854775808"), InvalidArgument);
  EXPECT_THROW(parse_bytes("99999999999999999999999999999999999999999999999999"), InvalidArgument);
  EXPECT_EQ(parse_bytes("8388607TiB"), Bytes{8388607} << 40);
  EXPECT_THROW(parse_bytes("8388608TiB"), InvalidArgument);
  EXPECT_EQ(parse_bytes("8388607.5TiB"), (Bytes{8388607} << 40) + (Bytes{1} << 39));
}

TEST(ParseBytes, RefusesAnythingElse) {
  for (const char* text :
       {"",     "  ", "-1",    "-1MiB", "MiB",    ".5GiB", "5.",    "5.GiB",   "1.5", "1.5B", "1e6",
        "0x10", "+1", "1,5GB", "1 2",   "3 MiBs", "3 iB",  "4 M B", "1.2.3GB", "nan", "1\n",  "1 \xC2\xB5"}) {
    EXPECT_THROW(parse_bytes(text), InvalidArgument) << "`" << text << "`";
  }
  EXPECT_THROW(parse_bytes(std::string_view("1\0", 2)), InvalidArgument);
}

TEST(ParseBytes, MessageSaysFoundExpectedAndWhatToDo) {
  EXPECT_EQ(
      message_of("12 XB"),
      "[refrain::parse_bytes] cannot read `12 XB` as a number of bytes: unknown unit `XB`, expected B, KiB, MiB, GiB, TiB, KB, MB, GB, TB, "
      "K, M, G or T; write it like `300MiB`, `1.5GB` or `4096`");
  EXPECT_NE(message_of("-3").find("negative"), std::string::npos);
  EXPECT_NE(message_of("9223372036854775808").find("9223372036854775807"), std::string::npos);
}

TEST(ParseBytes, ReadsWhatFormatBytesWrites) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 2000; ++i) {
    const Bytes n = static_cast<Bytes>(random() >> (20 + random() % 44));  // below 2^44: TiB is the largest unit read
    const Bytes back = parse_bytes(format_bytes(n));
    EXPECT_NEAR(static_cast<double>(back), static_cast<double>(n), 0.051 * static_cast<double>(n) + 0.5) << n;
  }
}

TEST(Literals, AreBinary) { static_assert(1_KiB == 1024_B && 1_MiB == 1024_KiB && 1_GiB == 1024_MiB); }

}  // namespace
}  // namespace refrain
