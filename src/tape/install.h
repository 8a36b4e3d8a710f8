#pragma once

namespace refrain::tape {

/// Puts the saved-tensor hook in place, once per process. Threads: any. Cost when done: one load.
void install();

}  // namespace refrain::tape
