#include "memory/process_memory.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <string_view>
#include <vector>

#include "refrain/error.h"

namespace refrain {
namespace {

namespace fs = std::filesystem;

/// Reads the number after `key` in lines of "key value" or "key: value kB".
std::optional<Bytes> field(const fs::path& file, std::string_view key) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string name, unit;
    Bytes value = 0;
    if (!(words >> name >> value) || name != key) continue;
    return words >> unit && unit == "kB" ? value << 10 : value;
  }
  return std::nullopt;
}

/// Reads a file that is one number; none for "max", or where there is no such file.
std::optional<Bytes> number(const fs::path& file) {
  std::ifstream in(file);
  Bytes value = 0;
  if (!(in >> value)) return std::nullopt;
  return value;
}

/// Where a hierarchy of control groups is mounted, and which group is mounted there.
struct Mount {
  std::string group, point;
};

/// A version of control groups: names of its files.
struct Hierarchy {
  std::string_view type;        ///< in mountinfo
  std::string_view controller;  ///< in mountinfo's options and in /proc/self/cgroup; empty for version 2
  std::vector<const char*> limits;
  const char* usage;
  const char* cached;  ///< in memory.stat: file pages not used lately
};

std::optional<Mount> find_mount(const fs::path& root, const Hierarchy& kind) {
  std::ifstream in(root / "proc/self/mountinfo");
  for (std::string line; std::getline(in, line);) {
    // ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAGS...] - TYPE SOURCE OPTIONS
    const auto middle = line.find(" - ");
    if (middle == std::string::npos) continue;
    std::istringstream before(line.substr(0, middle)), after(line.substr(middle + 3));
    std::string skipped, type, source, options;
    Mount mount;
    before >> skipped >> skipped >> skipped >> mount.group >> mount.point;
    after >> type >> source >> options;
    options = "," + options + ",";
    if (type != kind.type) continue;
    if (kind.controller.empty() || options.find("," + std::string(kind.controller) + ",") != std::string::npos)
      return mount;
  }
  return std::nullopt;
}

/// The group of this process in a hierarchy, as /proc/self/cgroup says: "ID:CONTROLLERS:PATH".
std::optional<std::string> find_group(const fs::path& root, const Hierarchy& kind) {
  std::ifstream in(root / "proc/self/cgroup");
  for (std::string line; std::getline(in, line);) {
    const auto first = line.find(':');
    const auto second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool is_it = kind.controller.empty()
                           ? controllers == ",,"
                           : controllers.find("," + std::string(kind.controller) + ",") != std::string::npos;
    if (is_it) return line.substr(second + 1);
  }
  return std::nullopt;
}

/// Computes the free bytes of a group; none if it has no limit.
std::optional<AvailableMemory> free_in(const fs::path& group, const Hierarchy& kind) {
  std::optional<AvailableMemory> least;
  for (const char* name : kind.limits) {
    const auto limit = number(group / name);
    const auto usage = number(group / kind.usage);
    if (!limit || !usage) continue;
    const Bytes cached = field(group / "memory.stat", kind.cached).value_or(0);
    const Bytes free = std::max<Bytes>(*limit - std::max<Bytes>(*usage - cached, 0), 0);
    if (!least || free < least->bytes) least = {free, (group / name).string()};
  }
  return least;
}

void take_least(AvailableMemory& least, const std::optional<AvailableMemory>& other) {
  if (other && other->bytes < least.bytes) least = *other;
}

void bound_by_groups(const fs::path& root, const Hierarchy& kind, AvailableMemory& least) {
  const auto mount = find_mount(root, kind);
  const auto group = find_group(root, kind);
  if (!mount || !group) return;
  const fs::path top = root / fs::path(mount->point).relative_path();
  // In a container the group may be named from outside, and its own files be those of the mount point.
  fs::path below = fs::path(*group).lexically_relative(mount->group);
  if (below.empty() || *below.begin() == ".." || !fs::is_directory(top / below)) below = ".";
  take_least(least, free_in(top, kind));
  fs::path at = top;
  for (const auto& part : below) {
    if (part == ".") continue;
    at /= part;
    take_least(least, free_in(at, kind));
  }
}

}  // namespace

ResidentBytes resident_bytes() {
  return {.current = field("/proc/self/status", "VmRSS:").value_or(0),
          .peak = field("/proc/self/status", "VmHWM:").value_or(0)};
}

Bytes resident_now() {
  // opened each time: a forked child would read its parent's
  const int file = ::open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
  if (file < 0) return 0;
  char text[128];
  const ssize_t n = ::read(file, text, sizeof text);
  ::close(file);
  if (n <= 0) return 0;
  const char* end = text + n;
  const char* at = std::find<const char*>(text, end, ' ');
  Bytes pages = 0;
  if (at != end) std::from_chars(at + 1, end, pages);
  static const Bytes page = ::sysconf(_SC_PAGESIZE);
  return pages * page;
}

Bytes resident_high() {
  struct rusage usage = {};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<Bytes>(usage.ru_maxrss) << 10;
}

void reset_resident_peak() {
  std::ofstream out("/proc/self/clear_refs");
  out << 5;
}

AvailableMemory available_memory(const fs::path& root) {
  const fs::path meminfo = root / "proc/meminfo";
  const auto of_system = field(meminfo, "MemAvailable:");
  if (!of_system) {
    throw EnvironmentError("[refrain::Budget] found no MemAvailable in " + meminfo.string() +
                           ", expected a line with the kB that are free; give a number of bytes instead");
  }
  AvailableMemory least{*of_system, meminfo.string()};
  bound_by_groups(root, {"cgroup2", "", {"memory.max", "memory.high"}, "memory.current", "inactive_file"}, least);
  bound_by_groups(root, {"cgroup", "memory", {"memory.limit_in_bytes"}, "memory.usage_in_bytes", "total_inactive_file"},
                  least);
  return least;
}

}  // namespace refrain
