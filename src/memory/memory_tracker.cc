#include "refrain/memory_tracker.h"

#include <ATen/DeviceAccelerator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "base/json_text.h"
#include "refrain/error.h"
#include "refrain/memory.h"

namespace refrain {
namespace {

std::string signed_bytes(Bytes bytes) { return (bytes < 0 ? "" : "+") + format_bytes(bytes); }

}  // namespace

struct MemoryTracker::Source {
  explicit Source(c10::Device asked) : device(asked) {}
  virtual ~Source() = default;
  virtual Bytes current() const = 0;
  virtual Bytes peak() const = 0;
  virtual void reset() = 0;

  c10::Device device;

  static std::unique_ptr<Source> of(c10::Device device);

 private:
  struct Cpu;
  struct Accelerator;
};

struct MemoryTracker::Source::Cpu final : Source {
  using Source::Source;
  Bytes current() const override { return start + scope->current(); }
  Bytes peak() const override { return start + scope->peak(); }
  void reset() override {
    scope.emplace();
    start = memory_stats().current - scope->current();
  }

  std::optional<MemoryScope> scope{std::in_place};
  Bytes start = memory_stats().current - scope->current();
};

struct MemoryTracker::Source::Accelerator final : Source {
  Accelerator(c10::Device asked, c10::DeviceAllocator& from) : Source(asked), allocator(from) { reset(); }
  Bytes current() const override { return requested().current; }
  Bytes peak() const override { return requested().peak; }
  void reset() override { allocator.resetPeakStats(device.index()); }
  c10::CachingAllocator::Stat requested() const {
    // all allocations together, as opposed to those of the small and the large pool
    constexpr auto kAggregate = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    return allocator.getDeviceStats(device.index()).requested_bytes[kAggregate];
  }

  c10::DeviceAllocator& allocator;
};

std::unique_ptr<MemoryTracker::Source> MemoryTracker::Source::of(c10::Device device) {
  if (device.is_cpu()) return std::make_unique<Cpu>(device);
  const auto accelerator = at::accelerator::getAccelerator();
  if (accelerator != device.type())
    throw InvalidArgument(
        fmt::format("[refrain::MemoryTracker] device `{}`: expected cpu or this process's accelerator, {}",
                    device.str(), accelerator ? c10::DeviceTypeName(*accelerator, true) : "of which there is none"));
  const int count = at::accelerator::deviceCount();
  const int index = device.has_index() ? device.index() : at::accelerator::getDeviceIndex();
  if (index >= count)
    throw InvalidArgument(
        fmt::format("[refrain::MemoryTracker] device `{}`: expected an index below {}, the number of devices",
                    device.str(), count));
  auto* allocator = dynamic_cast<c10::DeviceAllocator*>(c10::GetAllocator(device.type()));
  if (!allocator || !allocator->initialized())
    throw InvalidArgument(fmt::format(
        "[refrain::MemoryTracker] device `{}`: its allocator {}", device.str(),
        allocator ? "is not in use yet; make a tensor on the device first" : "gives no statistics in this LibTorch"));
  return std::make_unique<Accelerator>(c10::Device(device.type(), static_cast<c10::DeviceIndex>(index)), *allocator);
}

MemoryTracker::MemoryTracker(c10::Device device) : source_(Source::of(device)) {}

MemoryTracker::~MemoryTracker() = default;

Bytes MemoryTracker::snapshot(std::string label) {
  snapshots_.push_back({std::move(label), current()});
  return snapshots_.back().bytes;
}

void MemoryTracker::reset() {
  snapshots_.clear();
  source_->reset();
}

Bytes MemoryTracker::current() const { return source_->current(); }

Bytes MemoryTracker::peak() const { return source_->peak(); }

std::string MemoryTracker::report() const {
  size_t width = 4;
  for (const auto& snapshot : snapshots_) width = std::max(width, snapshot.label.size());
  std::string text;
  for (size_t i = 0; i < snapshots_.size(); ++i) {
    const auto& [label, bytes] = snapshots_[i];
    text += fmt::format("{:<{}}  {:>10}", label, width, format_bytes(bytes));
    if (i > 0) text += fmt::format("  {:>11}", signed_bytes(bytes - snapshots_[i - 1].bytes));
    text += '\n';
  }
  return text + fmt::format("{:<{}}  {:>10}\n", "peak", width, format_bytes(peak()));
}

std::string MemoryTracker::json() const {
  std::vector<std::string> rows;
  for (const auto& [label, bytes] : snapshots_)
    rows.push_back(fmt::format("{{\"label\":{},\"bytes\":{}}}", json_string(label), bytes));
  return fmt::format("{{\"device\":{},\"snapshots\":[{}],\"current_bytes\":{},\"peak_bytes\":{}}}",
                     json_string(source_->device.str()), fmt::join(rows, ","), current(), peak());
}

TrackedMemoryScope::TrackedMemoryScope(std::string label, std::function<void(const TrackedMemory&)> done,
                                       c10::Device device)
    : tracker_(device), done_(std::move(done)) {
  seen_.label = std::move(label);
  seen_.before = tracker_.current();
}

TrackedMemoryScope::~TrackedMemoryScope() {
  seen_.after = tracker_.current();
  seen_.peak = tracker_.peak();
  if (done_) done_(seen_);
}

}  // namespace refrain
