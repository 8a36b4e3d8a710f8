#pragma once

#include <filesystem>
#include <string_view>

#include "refrain/error.h"

namespace refrain {

/// Makes `content` the whole content of the file `path`: whoever opens it, now or after a crash, sees the old content
/// or the new, never a part.
///
/// Writes a temporary file in the same folder, syncs it, renames it over `path` and syncs the folder. A symbolic link is
/// followed and stays; an existing file keeps its permission bits, a new one gets 0666 less the umask. If anything
/// fails, `path` is as it was and the temporary file is removed.
/// @throws InvalidArgument if `path` is empty, a folder, or anything else that is not a regular file (a rename would replace
///         a device).
/// @throws FileError if the system refuses; names the file, the step and the reason.
/// Threads: any; of several writers of one path, the last to rename wins.
void write_file_atomically(const std::filesystem::path& path, std::string_view content);

}  // namespace refrain
