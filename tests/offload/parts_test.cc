// Free parts of a file, the order of fetching, and blocks on a device that fails.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <map>
#include <random>

#include "offload/block_file.h"
#include "offload/extents.h"
#include "offload/fetch_order.h"
#include "refrain/torch_error.h"
#include "tests/offload/fake_disk.h"
#include "tests/tape/support.h"

namespace refrain_test {
namespace {

using refrain::offload::BlockFile;
using refrain::offload::Extents;
using refrain::offload::FetchOrder;

TEST(Extents, AreNeverGivenTwiceAndJoinAgain) {
  constexpr int64_t kPage = 4096, kPages = 64;
  Extents extents;
  extents.give_back({0, kPages * kPage});
  std::vector<bool> taken(kPages);
  std::vector<Extents::Extent> mine;
  std::mt19937 random(3);
  for (int i = 0; i < 20000; ++i) {
    if (random() % 2 && !mine.empty()) {
      std::swap(mine[random() % mine.size()], mine.back());
      for (int64_t p = 0; p < mine.back().size / kPage; ++p) taken[mine.back().offset / kPage + p] = false;
      extents.give_back(mine.back());
      mine.pop_back();
      continue;
    }
    const int64_t pages = 1 + random() % 9;
    const auto extent = extents.take(pages * kPage);
    int64_t run = 0, longest = 0;
    for (const bool used : taken) longest = std::max(longest, run = used ? 0 : run + 1);
    ASSERT_EQ(extent.has_value(), longest >= pages);
    if (!extent) continue;
    for (int64_t p = 0; p < pages; ++p) {
      ASSERT_FALSE(taken[extent->offset / kPage + p]);
      taken[extent->offset / kPage + p] = true;
    }
    mine.push_back(*extent);
  }
  for (const auto& extent : mine) extents.give_back(extent);
  EXPECT_EQ(extents.free_before(kPages * kPage), kPages * kPage);
  EXPECT_EQ(extents.free_bytes(), kPages * kPage);
}

std::vector<int64_t> after(const FetchOrder& order, int64_t place, size_t most = 9) {
  std::vector<int64_t> places;
  order.visit_after(place, [&](int64_t next) {
    places.push_back(next);
    return places.size() < most;
  });
  return places;
}

TEST(FetchOrder, LastStoredFirstThenAsLastTime) {
  FetchOrder order;
  for (int64_t i = 0; i < 4; ++i) EXPECT_EQ(order.stored(), i);
  EXPECT_EQ(after(order, 3), (std::vector<int64_t>{2, 1, 0}));
  for (const int64_t place : {2, 3, 2, 0}) order.fetched(place);
  EXPECT_EQ(after(order, 3), (std::vector<int64_t>{2, 1, 0})) << "the step is not over";
  order.step_ended();
  EXPECT_EQ(order.stored(), 0);
  EXPECT_EQ(after(order, 2), (std::vector<int64_t>{3, 0}));
  EXPECT_EQ(after(order, 2, 1), (std::vector<int64_t>{3}));
  EXPECT_EQ(after(order, 0), (std::vector<int64_t>{}));
  EXPECT_EQ(after(order, 1), (std::vector<int64_t>{0})) << "it was not fetched last time";
  order.step_ended();
  EXPECT_EQ(after(order, 2), (std::vector<int64_t>{3, 0})) << "a step without backward teaches nothing";
}

struct Blocks : testing::Test {
  static std::string text(size_t nbytes) {
    std::string made(nbytes, 'a');
    for (size_t i = 0; i < nbytes; i += 7) made[i] = static_cast<char>(i / 7);
    return made;
  }
  static BlockFile::Block write(BlockFile& file, const std::string& bytes) {
    auto block = file.reserve(bytes.size());
    file.write(block, bytes.data());
    return block;
  }
  static std::string read(BlockFile& file, const BlockFile::Block& block) {
    std::string bytes(block.nbytes, '?');
    file.read(block, bytes.data());
    return bytes;
  }
  FakeDisk disk;
};

TEST_F(Blocks, ComeBackWholeOrInPiecesAndCompressed) {
  for (const int level : {0, 1}) {
    BlockFile file(disk.device(), refrain::Bytes{1} << 40, level);
    for (const bool in_pieces : {false, true}) {
      disk.in_pieces = in_pieces;
      const auto a = write(file, text(1)), b = write(file, text(12345)), c = write(file, text(4096));
      EXPECT_EQ(read(file, b), text(12345));
      file.free(b);
      const auto d = write(file, text(5000));
      EXPECT_EQ(read(file, a), text(1));
      EXPECT_EQ(read(file, c), text(4096));
      EXPECT_EQ(read(file, d), text(5000));
      EXPECT_EQ(level != 0, d.stored < d.nbytes);
      for (const auto& block : {a, c, d}) file.free(block);
      EXPECT_EQ(file.used(), 0);
    }
  }
}

TEST_F(Blocks, AFullDiskIsUsedToItsEnd) {
  disk.room = 40960;
  BlockFile file(disk.device(), refrain::Bytes{1} << 40, 0);
  const auto first = file.reserve(30000);
  const auto why = message_of<refrain::OffloadError>([&] { file.reserve(9000); });
  EXPECT_EQ(
      why,
      "[refrain::offload] the fake disk has no room for 12.0 KiB: No space left on device (32.0 KiB in use). Free "
      "some space, set OffloadOptions::directory to another disk, or offload less.");
  const auto second = file.reserve(8192);
  EXPECT_EQ(file.size(), 40960);
  file.free(second);
  file.free(first);
  EXPECT_NO_THROW(file.reserve(40960));
}

TEST_F(Blocks, CapacityIsALimit) {
  BlockFile file(disk.device(), 10000, 0);
  EXPECT_NO_THROW(file.reserve(8192));
  EXPECT_EQ(file.size(), 8192);
  EXPECT_EQ(message_of<refrain::OffloadError>([&] { file.reserve(1); }),
            "[refrain::offload] the fake disk has no room for 4.0 KiB: it would be larger than its capacity of 9.8 "
            "KiB. Raise OffloadOptions::capacity or offload less.");
}

TEST_F(Blocks, FaultsSayWhatAndWhere) {
  const std::string then =
      ". Parameters and optimizer state are as before this backward: run the step again, or set "
      "OffloadOptions::directory to another disk.";
  BlockFile file(disk.device(), refrain::Bytes{1} << 40, 0);
  const auto first = write(file, text(100)), block = write(file, text(5000));
  disk.fails_to_read = true;
  EXPECT_EQ(message_of<refrain::OffloadError>([&] { read(file, block); }),
            "[refrain::offload] cannot read 5000 bytes at 4096 of the fake disk: Input/output error" + then);
  disk.fails_to_read = false;
  disk.ends_early = true;
  EXPECT_EQ(read(file, first), text(100));
  EXPECT_EQ(
      message_of<refrain::OffloadError>([&] { read(file, block); }),
      "[refrain::offload] cannot read 5000 bytes at 4096 of the fake disk: the file is truncated after 0 of them" +
          then);
  disk.ends_early = false;
  EXPECT_EQ(read(file, block), text(5000)) << "a fault that passes does no harm";
  disk.flip_a_bit(4096 + 4999);
  const auto why = message_of<refrain::OffloadError>([&] { read(file, block); });
  EXPECT_TRUE(
      why.starts_with("[refrain::offload] 5000 bytes at 4096 of the fake disk are not those that were written: "
                      "their checksum is "))
      << why;
  disk.fails_to_write = true;
  EXPECT_EQ(message_of<refrain::OffloadError>([&] { write(file, text(10)); }),
            "[refrain::offload] cannot write 10 bytes at 12288 of the fake disk: Input/output error. Set "
            "OffloadOptions::directory to another disk.");
}

TEST_F(Blocks, CompressedBytesAreCheckedToo) {
  BlockFile file(disk.device(), refrain::Bytes{1} << 40, 3);
  const auto block = write(file, text(100000));
  EXPECT_EQ(file.used(), Extents::round_up(static_cast<int64_t>(block.stored)));
  EXPECT_LT(block.stored, 50000U);
  disk.flip_a_bit(static_cast<int64_t>(block.stored) / 2);
  EXPECT_THROW(read(file, block), refrain::OffloadError);
}

TEST(ScratchFile, HasNoNameAndRefusesBadFolders) {
  const auto folder = std::filesystem::temp_directory_path() / fmt::format("refrain-scratch-{}", ::getpid());
  std::filesystem::create_directory(folder);
  auto file = refrain::offload::open_scratch_file(folder);
  file->grow(8192);
  EXPECT_EQ(file->write("abc", 3, 5000), 3U);
  char bytes[3] = {};
  EXPECT_EQ(file->read(bytes, 3, 5000), 3U);
  EXPECT_EQ(std::string(bytes, 3), "abc");
  EXPECT_EQ(file->read(bytes, 3, 8192), 0U);
  EXPECT_TRUE(std::filesystem::is_empty(folder));
  std::filesystem::remove(folder);
  const auto options = refrain::OffloadOptions().store(refrain::OffloadTo::kDisk).directory(folder);
  EXPECT_EQ(message_of<refrain::InvalidArgument>([&] { refrain::OffloadStore store(options); }),
            fmt::format("[refrain::offload] cannot make a file in `{}`: No such file or directory. Expected a "
                        "folder that exists and may be written to; set OffloadOptions::directory.",
                        folder.string()));
}

}  // namespace
}  // namespace refrain_test
