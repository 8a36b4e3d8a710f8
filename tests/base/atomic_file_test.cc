#include "base/atomic_file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

namespace refrain {
namespace fs = std::filesystem;
namespace {

class AtomicFile : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "refrain-atomic-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { fs::remove_all(folder_); }

  static std::string content(const fs::path& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  static mode_t mode(const fs::path& path) {
    struct stat status {};
    EXPECT_EQ(::stat(path.c_str(), &status), 0);
    return status.st_mode & 07777;
  }

  size_t files() const { return static_cast<size_t>(std::distance(fs::directory_iterator(folder_), {})); }

  template <typename Exception>
  static std::string message_of(const fs::path& path, std::string_view text = "new") {
    try {
      write_file_atomically(path, text);
    } catch (const Exception& e) {
      return e.what();
    }
    return "nothing was thrown";
  }

  fs::path folder_;
};

TEST_F(AtomicFile, WritesAndReplaces) {
  const fs::path path = folder_ / "plan.json";
  const std::string binary("a\0b\r\n\xFF", 6);
  write_file_atomically(path, binary);
  EXPECT_EQ(content(path), binary);
  write_file_atomically(path, "shorter");
  EXPECT_EQ(content(path), "shorter");
  write_file_atomically(path, "");
  EXPECT_EQ(content(path), "");
  EXPECT_EQ(files(), 1u);
}

TEST_F(AtomicFile, WritesMegabytes) {
  std::string large(5'000'000, 'x');
  large.back() = 'y';
  write_file_atomically(folder_ / "large", large);
  EXPECT_EQ(content(folder_ / "large"), large);
}

TEST_F(AtomicFile, WritesARelativePathWithoutFolder) {
  const fs::path before = fs::current_path();
  fs::current_path(folder_);
  write_file_atomically("here", "x");
  fs::current_path(before);
  EXPECT_EQ(content(folder_ / "here"), "x");
}

TEST_F(AtomicFile, TakesTheLongestName) {
  const fs::path path = folder_ / std::string(255, 'n');
  write_file_atomically(path, "x");
  EXPECT_EQ(content(path), "x");
}

TEST_F(AtomicFile, NewFilesFollowTheUmaskAndOldOnesKeepTheirMode) {
  const fs::path path = folder_ / "f";
  const mode_t before = ::umask(027);
  write_file_atomically(path, "x");
  ::umask(before);
  EXPECT_EQ(mode(path), 0640u);
  ::chmod(path.c_str(), 0604);
  write_file_atomically(path, "y");
  EXPECT_EQ(mode(path), 0604u);
}

TEST_F(AtomicFile, FollowsLinks) {
  fs::create_directory(folder_ / "deep");
  write_file_atomically(folder_ / "deep/real", "old");
  fs::create_symlink("deep/real", folder_ / "link");
  fs::create_symlink(folder_ / "link", folder_ / "link2");
  write_file_atomically(folder_ / "link2", "new");
  EXPECT_TRUE(fs::is_symlink(folder_ / "link2"));
  EXPECT_TRUE(fs::is_symlink(folder_ / "link"));
  EXPECT_EQ(content(folder_ / "deep/real"), "new");

  fs::create_symlink("deep/none yet", folder_ / "dangling");
  write_file_atomically(folder_ / "dangling", "made");
  EXPECT_EQ(content(folder_ / "deep/none yet"), "made");

  fs::create_symlink("loop", folder_ / "loop");
  EXPECT_THROW(write_file_atomically(folder_ / "loop", "x"), FileError);
}

TEST_F(AtomicFile, RefusesWhatIsNoRegularFile) {
  EXPECT_EQ(message_of<InvalidArgument>(""), "[refrain::write_file] the path is empty; name a file");
  EXPECT_EQ(message_of<InvalidArgument>(folder_),
            "[refrain::write_file] `" + folder_.string() + "` is a folder; name a file in it");
  EXPECT_THROW(write_file_atomically(folder_ / "none" / "", "x"), InvalidArgument);
  const fs::path pipe = folder_ / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_NE(message_of<InvalidArgument>(pipe).find("expected a regular file"), std::string::npos);
  EXPECT_TRUE(fs::is_fifo(pipe));
  EXPECT_EQ(files(), 1u);
}

TEST_F(AtomicFile, MissingFolderSaysWhatToDo) {
  const fs::path path = folder_ / "none" / "f";
  EXPECT_EQ(
      message_of<FileError>(path),
      "[refrain::write_file] cannot write `" + path.string() +
          "`: creating a temporary file in its folder failed: No such file or directory; create the folder first");
}

TEST_F(AtomicFile, FailedWriteLeavesTheOldContentAndNoTemporary) {
  const fs::path path = folder_ / "f";
  write_file_atomically(path, "old");
  struct rlimit before {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const struct rlimit small { 4096, before.rlim_max };
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string message = message_of<FileError>(path, std::string(10'000, 'x'));
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);

  EXPECT_NE(message.find("writing 5904 bytes failed: File too large"), std::string::npos) << message;
  EXPECT_EQ(content(path), "old");
  EXPECT_EQ(files(), 1u);
}

TEST_F(AtomicFile, ReadersSeeOldOrNewNeverAPart) {
  const fs::path path = folder_ / "f";
  write_file_atomically(path, std::string(100'000, 'a'));
  std::vector<std::thread> writers;
  for (char letter : {'a', 'b', 'c'}) {
    writers.emplace_back([&path, letter] {
      for (int i = 0; i < 30; ++i)
        write_file_atomically(path, std::string(100'000 + static_cast<size_t>(letter), letter));
    });
  }
  for (int i = 0; i < 200; ++i) {
    const std::string seen = content(path);
    ASSERT_GE(seen.size(), 100'000u);
    ASSERT_EQ(seen.find_first_not_of(seen.front()), std::string::npos);
  }
  for (std::thread& writer : writers) writer.join();
  EXPECT_EQ(files(), 1u);
}

}  // namespace
}  // namespace refrain
