#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "offload/block_device.h"
#include "refrain/error.h"

namespace refrain::offload {
namespace fs = std::filesystem;
namespace {

[[noreturn]] void fail(int error) { throw std::system_error(error, std::generic_category()); }

class ScratchFile final : public BlockDevice {
 public:
  explicit ScratchFile(fs::path directory) : directory_(std::move(directory)) {
    std::string path = (directory_ / "refrain-offload-XXXXXX").string();
    fd_ = ::mkostemp(path.data(), O_CLOEXEC);
    if (fd_ < 0) {
      const int error = errno;
      throw InvalidArgument(fmt::format(
          "[refrain::offload] cannot make a file in `{}`: {}. Expected a folder that exists and may be written to; set "
          "OffloadOptions::directory.",
          directory_.string(), std::generic_category().message(error)));
    }
    ::unlink(path.c_str());
  }
  ~ScratchFile() override { ::close(fd_); }
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;

  void grow(int64_t size) override {
    int error;
    do error = ::posix_fallocate(fd_, size_, size - size_);
    while (error == EINTR);
    if (error != 0) fail(error);
    size_ = size;
  }

  size_t write(const char* bytes, size_t nbytes, int64_t offset) override {
    return retry([&] { return ::pwrite(fd_, bytes, nbytes, offset); });
  }

  size_t read(char* bytes, size_t nbytes, int64_t offset) override {
    return retry([&] { return ::pread(fd_, bytes, nbytes, offset); });
  }

  std::string name() const override { return fmt::format("the offload file in `{}`", directory_.string()); }

 private:
  template <typename Call>
  static size_t retry(const Call& call) {
    for (;;) {
      const ssize_t n = call();
      if (n >= 0) return static_cast<size_t>(n);
      if (errno != EINTR) fail(errno);
    }
  }

  const fs::path directory_;
  int fd_ = -1;
  int64_t size_ = 0;
};

}  // namespace

std::unique_ptr<BlockDevice> open_scratch_file(const fs::path& directory) {
  std::error_code none;
  return std::make_unique<ScratchFile>(directory.empty() ? fs::temp_directory_path(none) : directory);
}

}  // namespace refrain::offload
