#pragma once

#include "tape/tape.h"

namespace refrain::tape {

/// Arms the raw-pointer barrier on the storage of a value: a request for a writable pointer counts as a write. It turns
/// a value that can be replayed into a leaf, and first copies a leaf that recorded operators need.
void arm(Value* value, c10::StorageImpl* storage);

/// Says that code which is not seen writes to `storage` next. Called without the lock. @throws what making room for a
/// copy does; nothing is changed then.
void about_to_write(c10::StorageImpl* storage);

}  // namespace refrain::tape
