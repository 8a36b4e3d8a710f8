#include "refrain/memory_cap.h"

#include "evict/cap_state.h"
#include "evict/evict.h"
#include "evict/open_cap.h"
#include "evict/operands.h"
#include "evict/room_maker.h"
#include "memory/stack.h"
#include "refrain/error.h"
#include "refrain/memory.h"

namespace refrain {
namespace {

Bytes checked(Bytes value, const char* name) {
  if (value >= 0) return value;
  throw InvalidArgument(std::string("[refrain::MemoryCap] `") + name + "` is " + std::to_string(value) +
                        ", expected 0 or more bytes");
}

}  // namespace

struct MemoryCap::State {
  State(Budget budget, const MemoryCapOptions& options)
      : limit(budget), always(options.always_record()), number(budget::RoomMaker::get().add(options)) {
    try {
      tape::open_cap(always);
    } catch (...) {
      budget::RoomMaker::get().remove(number);
      throw;
    }
  }

  MemoryLimit limit;
  bool always;
  int number;
};

MemoryCap::MemoryCap(Bytes limit, const MemoryCapOptions& options)
    : MemoryCap(Budget::bytes(checked(limit, "limit")), options) {}

MemoryCap::MemoryCap(Budget budget, const MemoryCapOptions& options) {
  refuse_fraction(budget, "MemoryCap");
  checked(options.min_bytes(), "min_bytes");
  if (!(options.max_overhead() > 0.0))
    throw InvalidArgument("[refrain::MemoryCap] `max_overhead` is " + std::to_string(options.max_overhead()) +
                          ", expected a fraction above 0, such as 0.5");
  state_ = std::make_unique<State>(budget, options);
}

MemoryCap::~MemoryCap() {
  const int number = state_->number;
  const bool always = state_->always;
  state_.reset();  // first lift the limit, then recompute what is evicted
  tape::close_cap(always);
  budget::RoomMaker::get().remove(number);
}

MemoryCapStats MemoryCap::stats() const {
  const auto& counters = tape::cap_counters();
  return {.limit = limiting_allocator().limit(),
          .process_limit = resident_allocator().limit(),
          .evictions = counters.evictions.load(),
          .evicted_bytes = counters.evicted_bytes.load(),
          .recomputes = counters.recomputes.load(),
          .recompute_ms = static_cast<double>(counters.recompute_ns.load()) / 1e6,
          .policy_ms = static_cast<double>(budget::RoomMaker::get().policy_ns()) / 1e6,
          .unrecorded_steps = counters.unrecorded_steps.load()};
}

void MemoryCap::pin(const at::Tensor& tensor) { tape::pin(tensor, 1); }

PinScope::PinScope(at::Tensor tensor) : PinScope(std::vector<at::Tensor>{std::move(tensor)}) {}

PinScope::PinScope(std::vector<at::Tensor> tensors) {
  try {
    for (auto& tensor : tensors) {
      tape::pin(tensor, 1);
      tensors_.push_back(std::move(tensor));
    }
  } catch (...) {
    for (const auto& tensor : tensors_) tape::pin(tensor, -1);
    throw;
  }
}

PinScope::~PinScope() {
  for (const auto& tensor : tensors_) tape::pin(tensor, -1);
}

CapThreadScope::CapThreadScope() : joined_(tape::join_cap()) {}

CapThreadScope::~CapThreadScope() {
  if (joined_) tape::leave_cap();
}

}  // namespace refrain
