#pragma once

#include "evict/cap_state.h"
#include "evict/rest.h"
#include "evict/room_maker.h"

namespace refrain_test {

/// While alive, all that can be evicted is, before every operator and every one that is replayed.
class Torture {
 public:
  Torture() {
    refrain::tape::set_before_operator([] { refrain::budget::RoomMaker::get().evict_all(); });
  }
  ~Torture() { refrain::tape::set_before_operator(nullptr); }
  Torture(const Torture&) = delete;
  Torture& operator=(const Torture&) = delete;
};

}  // namespace refrain_test
