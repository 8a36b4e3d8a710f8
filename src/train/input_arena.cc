#include "train/input_arena.h"

#include <algorithm>

#include "intercept/storage_copy.h"

namespace refrain {

/// The blocks for one size on one device.
class InputArena::Shelf {
 public:
  struct Place {
    c10::Storage block;
    size_t begin;
  };

  Shelf(size_t nbytes, c10::Device device, int64_t slots) : nbytes_(nbytes), device_(device), slots_(slots) {}

  Place take() {
    std::lock_guard lock(mutex_);
    if (free_.empty()) add_block();
    auto place = std::move(free_.back());
    free_.pop_back();
    most_used_ = std::max(most_used_, ++in_use_);
    return place;
  }

  void give_back(Place&& place) {
    std::lock_guard lock(mutex_);
    free_.push_back(std::move(place));
    --in_use_;
  }

  ArenaProfile profile() const {
    std::lock_guard lock(mutex_);
    return {static_cast<Bytes>(nbytes_), in_use_ + static_cast<int64_t>(free_.size()), in_use_, most_used_};
  }

  void reset_profile() {
    std::lock_guard lock(mutex_);
    most_used_ = in_use_;
  }

  size_t nbytes() const { return nbytes_; }
  c10::Device device() const { return device_; }

 private:
  void add_block() {
    constexpr size_t kAlignment = 64;
    const size_t stride = (nbytes_ + kAlignment - 1) / kAlignment * kAlignment;
    const auto block = tape::raw_storage(stride * static_cast<size_t>(slots_), device_);
    // the first place is taken first
    for (int64_t i = slots_; i-- > 0;) free_.push_back({block, stride * static_cast<size_t>(i)});
  }

  const size_t nbytes_;
  const c10::Device device_;
  const int64_t slots_;
  mutable std::mutex mutex_;  ///< guards what follows
  std::vector<Place> free_;
  int64_t in_use_ = 0, most_used_ = 0;
};

class InputArena::InSlot final : public tape::Offloaded {
 public:
  InSlot(std::shared_ptr<Shelf> shelf, const c10::Storage& bytes) : shelf_(std::move(shelf)), place_(shelf_->take()) {
    tape::copy_part_into(place_.block, place_.begin, bytes);
  }
  ~InSlot() override { shelf_->give_back(std::move(place_)); }

  c10::Storage fetch() override {
    auto bytes = tape::raw_storage(shelf_->nbytes(), shelf_->device());
    tape::copy_part_from(place_.block, place_.begin, bytes);
    return bytes;
  }
  size_t bytes_on_device() const override { return shelf_->nbytes(); }

 private:
  const std::shared_ptr<Shelf> shelf_;
  Shelf::Place place_;
};

std::shared_ptr<tape::Offloaded> InputArena::store(const c10::Storage& bytes) {
  std::shared_ptr<Shelf> shelf;
  {
    std::lock_guard lock(mutex_);
    const auto device = bytes.device();
    auto& found = shelves_[{bytes.nbytes(), device.type(), device.index()}];
    if (!found) found = std::make_shared<Shelf>(bytes.nbytes(), device, slots_);
    shelf = found;
  }
  return std::make_shared<InSlot>(std::move(shelf), bytes);
}

std::vector<ArenaProfile> InputArena::profile() const {
  std::lock_guard lock(mutex_);
  std::vector<ArenaProfile> arenas;
  for (const auto& [key, shelf] : shelves_) arenas.push_back(shelf->profile());
  return arenas;
}

void InputArena::reset_profile() {
  std::lock_guard lock(mutex_);
  for (const auto& [key, shelf] : shelves_) shelf->reset_profile();
}

}  // namespace refrain
