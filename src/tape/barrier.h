#pragma once

#include "tape/tape.h"

namespace refrain::tape {

/// Arms the raw-pointer barrier on the storage of a value: whoever asks for a pointer to write through counts as a writer. Then what can be
/// replayed makes room for a leaf, and a leaf that recorded operators need is copied first.
void arm(Value* value, c10::StorageImpl* storage);

}  // namespace refrain::tape
