#include "memory/process_memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <map>

#include "refrain/budget.h"
#include "refrain/error.h"

namespace refrain {
namespace {

namespace fs = std::filesystem;

constexpr const char* kV2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
constexpr const char* kV1 =
    "31 23 0:27 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "32 23 0:28 / /sys/fs/cgroup/memory rw shared:10 master:2 - cgroup cgroup rw,memory\n";

/// A root of made-up files.
class Root {
 public:
  explicit Root(const std::map<std::string, std::string>& files) {
    char name[] = "/tmp/refrain_root_XXXXXX";
    path_ = mkdtemp(name);
    write("proc/meminfo", "MemTotal:       4194304 kB\nMemFree:         1024 kB\nMemAvailable:    2097152 kB\n");
    for (const auto& [file, text] : files) write(file, text);
  }
  ~Root() { fs::remove_all(path_); }

  void write(const std::string& file, const std::string& text) const {
    fs::create_directories((path_ / file).parent_path());
    std::ofstream(path_ / file) << text;
  }
  AvailableMemory read() const {
    auto found = available_memory(path_);
    found.source = fs::path(found.source).lexically_relative(path_).string();
    return found;
  }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

void expect_free(const Root& root, Bytes bytes, const std::string& source) {
  const auto found = root.read();
  EXPECT_EQ(found.bytes, bytes);
  EXPECT_EQ(found.source, source);
}

TEST(AvailableMemory, IsWhatTheSystemHasWithoutControlGroups) {
  expect_free(Root(std::map<std::string, std::string>()), 2_GiB, "proc/meminfo");
}

TEST(AvailableMemory, Version2CountsCachedFilesAsFree) {
  const Root root({{"proc/self/mountinfo", kV2},
                   {"proc/self/cgroup", "0::/job\n"},
                   {"sys/fs/cgroup/job/memory.max", "471859200\n"},
                   {"sys/fs/cgroup/job/memory.current", "209715200\n"},
                   {"sys/fs/cgroup/job/memory.stat", "anon 104857600\ninactive_file 52428800\nactive_file 7\n"}});
  expect_free(root, 300_MiB, "sys/fs/cgroup/job/memory.max");
}

TEST(AvailableMemory, Version2HasALowerHighMark) {
  const Root root({{"proc/self/mountinfo", kV2},
                   {"proc/self/cgroup", "0::/job\n"},
                   {"sys/fs/cgroup/job/memory.max", "471859200\n"},
                   {"sys/fs/cgroup/job/memory.high", "419430400\n"},
                   {"sys/fs/cgroup/job/memory.current", "209715200\n"}});
  expect_free(root, 200_MiB, "sys/fs/cgroup/job/memory.high");
}

TEST(AvailableMemory, TheTightestOfNestedGroupsBounds) {
  const Root root({{"proc/self/mountinfo", kV2},
                   {"proc/self/cgroup", "0::/slice/job/step\n"},
                   {"sys/fs/cgroup/slice/memory.max", "1073741824\n"},
                   {"sys/fs/cgroup/slice/memory.current", "1048576000\n"},  // others in it take nearly all
                   {"sys/fs/cgroup/slice/job/memory.max", "524288000\n"},
                   {"sys/fs/cgroup/slice/job/memory.current", "104857600\n"},
                   {"sys/fs/cgroup/slice/job/step/memory.max", "max\n"},
                   {"sys/fs/cgroup/slice/job/step/memory.current", "104857600\n"}});
  expect_free(root, 24_MiB, "sys/fs/cgroup/slice/memory.max");
}

TEST(AvailableMemory, NoLimitIsNone) {
  const Root v2({{"proc/self/mountinfo", kV2},
                 {"proc/self/cgroup", "0::/job\n"},
                 {"sys/fs/cgroup/job/memory.max", "max\n"},
                 {"sys/fs/cgroup/job/memory.high", "max\n"},
                 {"sys/fs/cgroup/job/memory.current", "209715200\n"}});
  expect_free(v2, 2_GiB, "proc/meminfo");
  const Root v1({{"proc/self/mountinfo", kV1},
                 {"proc/self/cgroup", "3:cpu,cpuacct:/job\n2:memory:/job\n"},
                 {"sys/fs/cgroup/memory/job/memory.limit_in_bytes", "9223372036854771712\n"},
                 {"sys/fs/cgroup/memory/job/memory.usage_in_bytes", "209715200\n"}});
  expect_free(v1, 2_GiB, "proc/meminfo");
}

TEST(AvailableMemory, Version1) {
  const Root root({{"proc/self/mountinfo", kV1},
                   {"proc/self/cgroup", "3:cpu,cpuacct:/elsewhere\n2:memory:/job\n"},
                   {"sys/fs/cgroup/memory/job/memory.limit_in_bytes", "471859200\n"},
                   {"sys/fs/cgroup/memory/job/memory.usage_in_bytes", "209715200\n"},
                   {"sys/fs/cgroup/memory/job/memory.stat", "inactive_file 1\ntotal_inactive_file 52428800\n"}});
  expect_free(root, 300_MiB, "sys/fs/cgroup/memory/job/memory.limit_in_bytes");
}

TEST(AvailableMemory, InAContainerTheMountPointIsTheGroup) {
  const std::map<std::string, std::string> files = {{"sys/fs/cgroup/memory/memory.limit_in_bytes", "471859200\n"},
                                                    {"sys/fs/cgroup/memory/memory.usage_in_bytes", "209715200\n"},
                                                    {"proc/self/cgroup", "2:memory:/docker/abc\n"}};
  Root root(files);
  // the group is named from outside, and so is what is mounted
  root.write("proc/self/mountinfo", "32 23 0:28 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n");
  expect_free(root, 250_MiB, "sys/fs/cgroup/memory/memory.limit_in_bytes");
  // only the group is
  root.write("proc/self/mountinfo", kV1);
  expect_free(root, 250_MiB, "sys/fs/cgroup/memory/memory.limit_in_bytes");
}

TEST(AvailableMemory, MoreUsedThanAllowedIsNothing) {
  const Root root({{"proc/self/mountinfo", kV2},
                   {"proc/self/cgroup", "0::/\n"},
                   {"sys/fs/cgroup/memory.max", "1000\n"},
                   {"sys/fs/cgroup/memory.current", "2000\n"}});
  expect_free(root, 0, "sys/fs/cgroup/memory.max");
}

TEST(AvailableMemory, SaysWhichFileItMisses) {
  const Root root(std::map<std::string, std::string>{{"proc/meminfo", "MemTotal: 5 kB\n"}});
  try {
    available_memory(root.path());
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find((root.path() / "proc/meminfo").string()), std::string::npos)
        << error.what();
    EXPECT_NE(std::string(error.what()).find("MemAvailable"), std::string::npos) << error.what();
  }
}

TEST(ResidentBytes, TheSystemsCountsAgree) {
  const auto all = resident_bytes();
  EXPECT_GT(all.current, 1_MiB);
  EXPECT_GE(all.peak, all.current);
  EXPECT_NEAR(static_cast<double>(resident_now()), static_cast<double>(all.current), 4e6);
}

TEST(Budget, RefusesWhatIsNone) {
  EXPECT_THROW(Budget::bytes(-1), InvalidArgument);
  EXPECT_THROW(Budget::process(-1), InvalidArgument);
  for (double part : {0.0, -0.5, 1.01}) EXPECT_THROW(Budget::available(part), InvalidArgument) << part;
  EXPECT_EQ(Budget::process(5).bytes(), 5);
  EXPECT_GT(Budget::available(0.5).bytes(), resident_now() / 2);
}

}  // namespace
}  // namespace refrain
