#include "replay/refill.h"

#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/graph_task.h>

#include <algorithm>
#include <chrono>
#include <optional>

#include "refrain/torch_error.h"
#include "replay/pass.h"
#include "tape/region_end.h"
#include "tape/region_work.h"

namespace refrain::tape {
namespace {

void drop_unread(TapeLock& lock, Region* region) {
  for (auto* slot = region->slots; slot; slot = slot->in_region.next) lock.discard(std::move(slot->filled));
  release_bound_holds(lock, region);
  for (auto* child : region->children) release_bound_holds(lock, child);
}

// Cleans up when the graph task releases its callback: at its end, or when it failed.
struct Cleanup {
  explicit Cleanup(Region* r) : region(r) { ++region->refs; }
  ~Cleanup() {
    TapeLock lock;
    drop_unread(lock, region);
    lock.release(region);
  }
  Cleanup(const Cleanup&) = delete;
  Cleanup& operator=(const Cleanup&) = delete;
  Region* region;
};

// Recomputed bytes that this graph task does not read are dropped when it ends.
void drop_unread_after(Region* region, int32_t task) {
  if (region->cleanup_task == task) return;
  region->cleanup_task = task;
  torch::autograd::Engine::get_default_engine().queue_callback(
      [cleanup = std::make_shared<Cleanup>(region)]() mutable { cleanup.reset(); });
}

class FillingScope {
 public:
  explicit FillingScope(Region* region) : region_(region) {
    region_->filling = true;
    ++region_->refs;
  }
  void finish(TapeLock& lock) {
    region_->filling = false;
    lock.tape().filled.notify_all();
    lock.release(region_);
  }

 private:
  Region* region_;
};

// Slots keep what they read from a bound; the bounds themselves are not needed until the next backward.
void keep_bounds_read(TapeLock& lock, Region* region, Slot* asked, int32_t task) {
  if (task < 0) return;
  for (auto* slot = region->slots; slot; slot = slot->in_region.next)
    if ((slot == asked || slot->read_task != task) && slot->value && !slot->filled && !slot->value->is_leaf())
      slot->fill(resident(*slot->value));
  release_bound_holds(lock, region);
  drop_unread_after(region, task);
}

// Adds to `pass` what `region`'s unread slots (or only `asked`, outside a graph task) and the bounds of its nested
// regions need.
// @return whether there is anything.
bool want_all(Pass& pass, const Region* region, const Slot* asked, int32_t task) {
  bool any = false;
  for (auto* slot = region->slots; slot; slot = slot->in_region.next) {
    const bool unread = task >= 0 && slot->read_task != task;
    if (slot != asked && !unread) continue;
    if (!slot->value || slot->filled || slot->value->unknown || slot->value->is_evicted() || resident(*slot->value))
      continue;
    if (slot->value->is_leaf() && !slot->value->is_in_store()) continue;
    pass.want(slot->value);
    any = true;
  }
  for (auto* child : region->children) {
    if (child->live_slots == 0) continue;
    for (auto& bound : child->bounds) {
      if (bound.value->is_leaf() || resident(*bound.value)) continue;
      pass.want(bound.value);
      any = true;
    }
  }
  return any;
}

// Gives values and slots the results of the pass. @return the storage of `output`, if that is not null.
c10::Storage hand_out(TapeLock& lock, const Pass& pass, const Region* region, const Slot* asked, int32_t task,
                      const Value* output) {
  c10::Storage brought;
  for (const auto& planned : pass.values()) {
    if (!planned.target) continue;
    auto* value = planned.value;
    auto bytes = planned.bytes;
    // fetched because all ranks take part, though it is resident: autograd, and who writes to it, have the tensor
    if (auto own = value->is_in_store() && value->key && !value->is_overwritten() ? value->storage.lock() : nullptr)
      bytes = c10::Storage(std::move(own));
    else
      install_bytes(lock, value, bytes);
    if (value == output) brought = bytes;
    for (auto* slot = value->slots; slot; slot = slot->in_value.next)
      if (slot->region == region && (slot == asked || (task >= 0 && slot->read_task != task))) slot->fill(bytes);
    lock.discard(std::move(bytes));
  }
  return brought;
}

void hold_bounds_of_children(TapeLock& lock, const Region* region) {
  for (auto* child : region->children) {
    if (child->live_slots == 0) continue;
    for (auto& bound : child->bounds) {
      if (bound.holds || bound.value->is_leaf()) continue;
      bound.holds = true;
      hold(lock, bound.value);
    }
  }
}

// Replays what `want_all` finds. @param output  to recompute as well, or null: its storage is returned.
c10::Storage fill_region(TapeLock& lock, Region* region, Slot* asked, int32_t task, Value* output = nullptr) {
  std::optional<Pass> pass;
  const auto want = [&](int32_t of_task) {
    pass.emplace(lock);
    if (output) pass->want(output);
    return want_all(*pass, region, asked, of_task);
  };
  const bool any = want(task);
  if (!any && !output) {
    keep_bounds_read(lock, region, asked, task);
    return {};
  }
  c10::Storage brought;
  FillingScope filling(region);
  const auto start = std::chrono::steady_clock::now();
  std::exception_ptr failure;
  try {
    try {
      pass->close(lock);
    } catch (const CheckpointError&) {
      if (!asked || task < 0) throw;
      pass->clear(lock);  // what cannot be recomputed may be another slot's, which backward need not read
      want(-1);
      pass->close(lock);
    }
    pass->lock_inputs();
    lock.raw().unlock();
    const RecomputeScope recompute(region->work.get());
    at::ThreadLocalStateGuard state(*region->thread_state);
    pass->run();
  } catch (...) {
    failure = std::current_exception();
  }
  if (!lock.raw().owns_lock()) lock.raw().lock();
  if (!failure) {
    brought = hand_out(lock, *pass, region, asked, task, output);
    hold_bounds_of_children(lock, region);
    keep_bounds_read(lock, region, asked, task);
    lock.tape().stats.replay_ms +=
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  }
  pass->clear(lock);
  filling.finish(lock);
  if (failure) std::rethrow_exception(failure);
  return brought;
}

bool bounds_resident(const Region* region) {
  return std::all_of(region->bounds.begin(), region->bounds.end(),
                     [](const auto& bound) { return bound.value->is_leaf() || resident(*bound.value); });
}

void wait_until_idle(TapeLock& lock, Region* region) {
  while (region->filling) lock.tape().filled.wait(lock.raw());
}

// Fills enclosing regions first: what `region` reads from them must be resident.
void fill_enclosing(TapeLock& lock, Region* region, int32_t task) {
  std::vector<Region*> missing;
  for (auto* at = region; at->parent && !bounds_resident(at); at = at->parent) missing.push_back(at->parent);
  for (auto it = missing.rbegin(); it != missing.rend(); ++it) {
    wait_until_idle(lock, *it);
    fill_region(lock, *it, nullptr, task);
  }
}

// Fills the regions whose discarded outputs `region` reads, in forward order; each recomputes what its own slots need
// too, as backward reaches it next.
void fill_discarded(TapeLock& lock, Region* region, int32_t task) {
  struct Missing {
    Region* reader;
    size_t bound;
    uint64_t seq;
  };
  std::vector<Region*> readers{region->top};
  std::vector<Missing> missing;
  for (size_t r = 0; r < readers.size(); ++r) {
    auto* reader = readers[r];
    for (size_t i = 0; i < reader->bounds.size(); ++i) {
      auto* value = reader->bounds[i].value;
      if (!value->discard || !value->producer || reader->bounds[i].holds || resident(*value)) continue;
      missing.push_back({reader, i, value->producer->seq});
      auto* source = value->region->top;
      if (std::find(readers.begin(), readers.end(), source) == readers.end()) readers.push_back(source);
    }
  }
  std::sort(missing.begin(), missing.end(), [](const auto& a, const auto& b) { return a.seq < b.seq; });
  for (const auto& [reader, i, seq] : missing) {
    auto* value = reader->bounds[i].value;
    wait_until_idle(lock, value->region);
    auto bytes = resident(*value);
    if (!bytes && value->producer) {
      fill_enclosing(lock, value->region, task);
      bytes = fill_region(lock, value->region, nullptr, task, value);
    }
    if (!std::exchange(reader->bounds[i].holds, true)) hold(lock, value);
    lock.discard(std::move(bytes));
  }
}

}  // namespace

void refill(TapeLock& lock, Slot& slot) {
  auto* region = slot.region;
  const int32_t task = torch::autograd::get_current_graph_task_id();
  const auto back = [&] {
    if (!slot.filled) slot.fill(resident(*slot.value));
    return static_cast<bool>(slot.filled);
  };
  for (;;) {
    wait_until_idle(lock, region);
    if (back()) return;
    fill_discarded(lock, region, task);
    if (back()) return;
    fill_enclosing(lock, region, task);
    if (back()) return;
    if (region->filling) continue;
    fill_region(lock, region, &slot, task);
    if (back()) return;
    throw CheckpointError(
        "[refrain::checkpoint] a saved tensor cannot be recomputed: no operator wrote its bytes, and they are freed. "
        "Keep the tensor alive until an operator has read it.");
  }
}

}  // namespace refrain::tape
