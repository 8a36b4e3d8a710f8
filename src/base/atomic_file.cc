#include "base/atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <string>
#include <system_error>

namespace refrain {
namespace fs = std::filesystem;
namespace {

std::string advice(int error) {
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return "create the folder first";
    case EACCES:
    case EPERM:
    case EROFS:
      return "choose a folder that you may write to";
    case ENOSPC:
    case EDQUOT:
      return "free some space or choose another disk";
    case ENAMETOOLONG:
      return "choose a shorter name";
    default:
      return "choose another place";
  }
}

[[noreturn]] void fail(const fs::path& path, const std::string& step, int error) {
  throw FileError("[refrain::write_file] cannot write `" + path.string() + "`: " + step +
                  " failed: " + std::generic_category().message(error) + "; " + advice(error));
}

/// A new file in the folder of `target`, closed and removed on destruction unless it was renamed.
class TemporaryFile {
 public:
  TemporaryFile(const fs::path& path, const fs::path& target) : path_(path), target_(target) {
    static std::atomic<unsigned> next{0};
    do {
      // not derived from the target's name, which may already be as long as names can be
      const std::string name = ".refrain-" + std::to_string(::getpid()) + "-" + std::to_string(next++) + ".tmp";
      name_ = target_.parent_path() / name;
      // not mkstemp: its 0600 would ignore the umask
      fd_ = ::open(name_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    } while (fd_ < 0 && (errno == EEXIST || errno == EINTR));
    if (fd_ < 0) fail(path_, "creating a temporary file in its folder", errno);
  }

  ~TemporaryFile() {
    if (fd_ >= 0) ::close(fd_);
    if (!renamed_) ::unlink(name_.c_str());
  }

  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  void keep_mode_of(const struct stat& old) {
    if (::fchmod(fd_, old.st_mode & 07777) != 0) fail(path_, "setting the permissions", errno);
  }

  void write(std::string_view content) {
    while (!content.empty()) {
      const ssize_t n = ::write(fd_, content.data(), content.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail(path_, "writing " + std::to_string(content.size()) + " bytes", errno);
      content.remove_prefix(static_cast<size_t>(n));
    }
  }

  void sync_and_close() {
    if (::fsync(fd_) != 0) fail(path_, "syncing", errno);
    const int fd = fd_;
    fd_ = -1;
    // a network file system may report a full disk only now
    if (::close(fd) != 0 && errno != EINTR) fail(path_, "closing", errno);
  }

  void rename() {
    if (::rename(name_.c_str(), target_.c_str()) != 0) fail(path_, "renaming the temporary file", errno);
    renamed_ = true;
  }

 private:
  const fs::path path_;
  const fs::path target_;
  fs::path name_;
  int fd_ = -1;
  bool renamed_ = false;
};

fs::path follow_links(const fs::path& path) {
  fs::path target = path;
  std::error_code error;
  // as many as Linux follows
  for (int links = 0; fs::is_symlink(target, error); ++links) {
    if (links == 40) fail(path, "following its symbolic links", ELOOP);
    const fs::path next = fs::read_symlink(target, error);
    if (error) fail(path, "following its symbolic links", error.value());
    target = target.parent_path() / next;
  }
  return target;
}

void sync_folder(const fs::path& folder) {
  // the file is whole already; some file systems cannot sync a folder, so a failure here is not the caller's concern
  const int fd = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  ::fsync(fd);
  ::close(fd);
}

}  // namespace

void write_file_atomically(const fs::path& path, std::string_view content) {
  if (path.empty()) throw InvalidArgument("[refrain::write_file] the path is empty; name a file");
  const fs::path target = follow_links(path);
  struct stat old {};
  const bool exists = ::stat(target.c_str(), &old) == 0;
  if ((exists && S_ISDIR(old.st_mode)) || !target.has_filename()) {
    throw InvalidArgument("[refrain::write_file] `" + path.string() + "` is a folder; name a file in it");
  }
  if (exists && !S_ISREG(old.st_mode)) {
    throw InvalidArgument("[refrain::write_file] `" + path.string() +
                          "` is a device, pipe or socket, expected a regular file; name a regular file");
  }
  TemporaryFile file(path, target);
  if (exists) file.keep_mode_of(old);
  file.write(content);
  file.sync_and_close();
  file.rename();
  sync_folder(target.parent_path());
}

}  // namespace refrain
