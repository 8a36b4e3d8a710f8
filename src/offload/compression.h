#pragma once

#include <cstddef>
#include <string>

namespace refrain::offload {

/// Checks a level. @throws InvalidArgument  if zstd has no such level, or this build no zstd.
void check_level(int level);
/// Compresses. @returns "" if it would not become smaller.
std::string compressed(const char* bytes, size_t nbytes, int level);
/// Decompresses. @returns whether `from` held just as many bytes.
bool decompress(const std::string& from, char* bytes, size_t nbytes);

}  // namespace refrain::offload
