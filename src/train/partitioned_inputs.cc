#include "train/partitioned_inputs.h"

#include <ATen/ops/sum.h>
#include <ATen/ops/tensor.h>
#include <fmt/format.h>

#include <cstring>

#include "intercept/storage_copy.h"

namespace refrain {
namespace {

uint64_t mixed(uint64_t state, uint64_t word) {
  state = (state ^ word) * 0x9e3779b97f4a7c15U;
  return state ^ (state >> 29);
}

// Hash of the bytes. On a device the sum of its words, which ignores their order.
uint64_t fingerprint(const c10::Storage& storage) {
  const size_t n = storage.nbytes();
  if (!storage.device().is_cpu()) {
    const auto words = tape::byte_tensor(storage, 0, n / 4 * 4).view(at::kInt);
    return static_cast<uint64_t>(words.sum(at::kLong).item<int64_t>());
  }
  const auto* const bytes = static_cast<const char*>(storage.data());
  constexpr size_t kLanes = 4, kWord = sizeof(uint64_t);
  uint64_t lanes[kLanes] = {1, 2, 3, 4};  // independent, so that their multiplications overlap
  size_t at = 0;
  for (; at + kLanes * kWord <= n; at += kLanes * kWord) {
    uint64_t words[kLanes];
    std::memcpy(words, bytes + at, sizeof(words));
    for (size_t i = 0; i < kLanes; ++i) lanes[i] = mixed(lanes[i], words[i]);
  }
  uint64_t all = n;
  for (; at < n; at += kWord) {
    uint64_t word = 0;
    std::memcpy(&word, bytes + at, std::min(kWord, n - at));
    all = mixed(all, word);
  }
  for (const auto lane : lanes) all = mixed(all, lane);
  return all;
}

/// Identity of an input, which ranks compare before they exchange their parts.
struct Identity {
  int64_t number;  ///< of the input, in the order of forward
  int64_t nbytes;
  int64_t fingerprint;

  bool operator==(const Identity&) const = default;
};

class Part final : public tape::Offloaded {
 public:
  Part(const ProcessGroup& group, int64_t number, const c10::Storage& bytes,
       const PartitionedInputs::StorePart& store_part)
      : group_(group),
        device_(bytes.device()),
        identity_{number, static_cast<int64_t>(bytes.nbytes()), static_cast<int64_t>(fingerprint(bytes))},
        part_bytes_((bytes.nbytes() + static_cast<size_t>(group.size()) - 1) / static_cast<size_t>(group.size())) {
    auto part = tape::raw_storage(part_bytes_, device_);
    tape::copy_part_from(bytes, part_bytes_ * static_cast<size_t>(group.rank()), part);
    elsewhere_ = store_part(part);
    if (!elsewhere_) here_ = std::move(part);
  }

  c10::Storage fetch() override {
    const tape::BelowTape below;
    const auto part = here_ ? here_ : elsewhere_->fetch();
    try {
      compare_ranks();
      auto whole = tape::raw_storage(part_bytes_ * static_cast<size_t>(group_.size()), device_);
      group_.all_gather_into(tape::byte_tensor(whole, 0, whole.nbytes()), tape::byte_tensor(part, 0, part_bytes_));
      whole.set_nbytes(static_cast<size_t>(identity_.nbytes));
      return whole;
    } catch (const DistributedError& error) {
      throw DistributedError(fmt::format(
          "{} Backward was gathering region input {} ({} bytes), of which each of {} ranks keeps a part. All of "
          "them must run the same regions, forward and backward, in the same order.",
          error.what(), identity_.number, identity_.nbytes, group_.size()));
    }
  }

  size_t bytes_on_device() const override { return here_ ? part_bytes_ : elsewhere_->bytes_on_device(); }
  bool needs_all_ranks() const override { return true; }

 private:
  void compare_ranks() const {
    const auto mine = at::tensor({identity_.number, identity_.nbytes, identity_.fingerprint}, at::kLong).to(device_);
    const auto all = group_.all_gather(mine);
    for (size_t rank = 0; rank < all.size(); ++rank) {
      const auto host = all[rank].cpu();
      const auto* const fields = host.const_data_ptr<int64_t>();
      const Identity theirs{fields[0], fields[1], fields[2]};
      if (theirs == identity_) continue;
      if (theirs.number != identity_.number || theirs.nbytes != identity_.nbytes)
        throw DistributedError(fmt::format(
            "[refrain::partition_activations] ranks ask for different region inputs: rank {} for input {} ({} bytes), "
            "rank {} for input {} ({} bytes).",
            group_.rank(), identity_.number, identity_.nbytes, rank, theirs.number, theirs.nbytes));
      throw DistributedError(fmt::format(
          "[refrain::partition_activations] ranks {} and {} have different bytes in a region input. Only ranks that "
          "compute the same activations, as those of tensor parallelism, can share them; for others use "
          "cpu_checkpointing.",
          group_.rank(), rank));
    }
  }

  const ProcessGroup group_;
  const c10::Device device_;
  const Identity identity_;
  const size_t part_bytes_;  ///< the last rank's part is padded
  c10::Storage here_;
  std::shared_ptr<tape::Offloaded> elsewhere_;  ///< if not `here_`
};

}  // namespace

std::shared_ptr<tape::Offloaded> PartitionedInputs::store(const c10::Storage& bytes, const StorePart& store_part) {
  constexpr size_t kLeast = 64;  // the allocator's smallest block
  if (group_.size() == 1 || bytes.nbytes() < kLeast * static_cast<size_t>(group_.size())) return nullptr;
  return std::make_shared<Part>(group_, next_number_++, bytes, store_part);
}

}  // namespace refrain
