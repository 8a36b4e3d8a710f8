#include "offload/compression.h"

#include <fmt/format.h>

#include "refrain/error.h"

#ifdef REFRAIN_HAVE_ZSTD
#include <zstd.h>

namespace refrain::offload {

void check_level(int level) {
  // higher levels need far more memory than a value has
  constexpr int kMost = 19;
  if (level < ZSTD_minCLevel() || level > kMost)
    throw InvalidArgument(
        fmt::format("[refrain::offload] compress is {}, expected a zstd level from {} to {}, or 0 for none.", level,
                    ZSTD_minCLevel(), kMost));
}

std::string compressed(const char* bytes, size_t nbytes, int level) {
  std::string out(nbytes - 1, '\0');
  const size_t n = ZSTD_compress(out.data(), out.size(), bytes, nbytes, level);
  out.resize(ZSTD_isError(n) ? 0 : n);
  return out;
}

bool decompress(const std::string& from, char* bytes, size_t nbytes) {
  return ZSTD_decompress(bytes, nbytes, from.data(), from.size()) == nbytes;
}

}  // namespace refrain::offload

#else

namespace refrain::offload {

void check_level(int level) {
  if (level != 0)
    throw InvalidArgument(fmt::format(
        "[refrain::offload] compress is {}, but this library was built without zstd. Install libzstd-dev and rebuild "
        "it, or use 0.",
        level));
}

std::string compressed(const char*, size_t, int) { return {}; }

bool decompress(const std::string&, char*, size_t) { return false; }

}  // namespace refrain::offload

#endif
