#include "timeline/timeline_analysis.h"

#include <algorithm>
#include <unordered_map>

namespace refrain {
namespace {

using What = TimelineEvent::What;

double microseconds(int64_t ns) { return static_cast<double>(ns) / 1e3; }

/// A block, and what is needed to tell its kind.
struct Life {
  MemoryBlock block;
  const TimelineEvent* made = nullptr;  ///< null for blocks from before
  const TimelineEvent* freed = nullptr;
  bool is_known = false;
  bool outlived_forward = false;
};

class Analysis {
 public:
  explicit Analysis(const TimelineRecord& record) : record_(record) {}

  MemoryTimelineReport run() {
    for (const auto& event : record_.events) take(event);
    add_unexplained();
    for (auto& life : lives_) finish(life);
    report_.base_bytes = record_.base;
    report_.end_us = microseconds(record_.end_ns);
    report_.resident_before = record_.resident_before;
    if (!report_.phases.empty()) report_.phases.back().end_us = report_.end_us;
    order_blocks();
    find_peak();
    return std::move(report_);
  }

 private:
  void take(const TimelineEvent& event) {
    switch (event.what) {
      case What::kAllocated:
        return allocated(event);
      case What::kFreed:
        return freed(event);
      case What::kShaped:
        return shaped(event);
      case What::kKnown:
        return known(event);
      case What::kPhase:
        return phase(event);
      case What::kResident:
        report_.resident.push_back({microseconds(event.time_ns), event.bytes});
        return;
    }
  }

  size_t add(const void* data, Bytes bytes) {
    lives_.emplace_back().block.bytes = bytes;
    lives_.back().block.outlives_recording = true;
    return alive_[data] = lives_.size() - 1;
  }

  void note(const TimelineEvent& event, size_t life, bool frees) {
    report_.events.push_back({microseconds(event.time_ns), static_cast<int64_t>(life), frees, event.level});
  }

  void allocated(const TimelineEvent& event) {
    ++report_.allocations;
    const size_t index = add(event.data, event.bytes);
    auto& life = lives_[index];
    life.made = &event;
    life.block.phase = event.phase;
    life.block.op = tape::interned(event.op);
    life.block.module = tape::interned(event.module);
    life.block.begin_us = microseconds(event.time_ns);
    if (event.phase == MemoryPhase::kForward) in_forward_[event.thread].push_back(index);
    note(event, index, false);
  }

  void freed(const TimelineEvent& event) {
    const auto found = alive_.find(event.data);
    const size_t index = found == alive_.end() ? add(event.data, event.bytes) : found->second;
    auto& life = lives_[index];
    life.freed = &event;
    life.block.outlives_recording = false;
    life.block.end_us = microseconds(event.time_ns);
    life.outlived_forward |= event.phase != MemoryPhase::kForward;
    alive_.erase(event.data);
    note(event, index, true);
  }

  void shaped(const TimelineEvent& event) {
    const auto found = alive_.find(event.data);
    if (found != alive_.end()) set_sizes(lives_[found->second], event);
  }

  void known(const TimelineEvent& event) {
    const auto found = alive_.find(event.data);
    auto& life = lives_[found == alive_.end() ? add(event.data, event.bytes) : found->second];
    if (std::exchange(life.is_known, true)) return;
    life.block.kind = event.kind;
    if (event.module != 0) life.block.module = tape::interned(event.module);
    set_sizes(life, event);
  }

  void set_sizes(Life& life, const TimelineEvent& event) const {
    life.block.sizes.assign(record_.sizes.begin() + event.sizes_begin, record_.sizes.begin() + event.sizes_end);
  }

  void phase(const TimelineEvent& event) {
    if (event.phase != MemoryPhase::kForward) {
      for (const size_t index : in_forward_[event.thread])
        if (!lives_[index].freed) lives_[index].outlived_forward = true;
      in_forward_[event.thread].clear();
    }
    if (event.thread != record_.thread) return;
    const double now = microseconds(event.time_ns);
    if (!report_.phases.empty()) report_.phases.back().end_us = now;
    report_.phases.push_back({event.phase, report_.phases.empty() ? 0.0 : now, now});
  }

  // Blocks allocated at the beginning, and neither named nor freed.
  void add_unexplained() {
    Bytes rest = record_.base;
    for (const auto& life : lives_) rest -= life.made ? 0 : life.block.bytes;
    if (rest != 0) add(nullptr, rest);
  }

  MemoryKind kind(const Life& life) const {
    if (life.is_known) return life.block.kind;
    if (!life.made) return MemoryKind::kOther;
    const auto &made = *life.made, *freed = life.freed;
    if (freed && made.call != 0 && made.call == freed->call && made.thread == freed->thread)
      return MemoryKind::kWorkspace;
    switch (made.phase) {
      case MemoryPhase::kForward:
        return life.outlived_forward || !freed ? MemoryKind::kActivationKept : MemoryKind::kTemporary;
      case MemoryPhase::kRecompute:
        return MemoryKind::kRecomputed;
      case MemoryPhase::kOptimizer:
        return freed ? MemoryKind::kTemporary : MemoryKind::kOptimizerState;
      case MemoryPhase::kBackward:
        break;
    }
    return MemoryKind::kTemporary;
  }

  void finish(Life& life) {
    life.block.kind = kind(life);
    life.block.preexisting = !life.made;
    if (life.block.outlives_recording) life.block.end_us = microseconds(record_.end_ns);
  }

  void order_blocks() {
    std::vector<int64_t> place(lives_.size());
    for (const bool before : {true, false}) {
      for (size_t i = 0; i < lives_.size(); ++i) {
        if (lives_[i].block.preexisting != before) continue;
        place[i] = static_cast<int64_t>(report_.blocks.size());
        report_.blocks.push_back(std::move(lives_[i].block));
      }
    }
    for (auto& event : report_.events) event.block = place[static_cast<size_t>(event.block)];
  }

  void find_peak() {
    report_.peak_bytes = report_.base_bytes;
    size_t events = 0;  // up to the peak
    for (size_t i = 0; i < report_.events.size(); ++i) {
      const auto& event = report_.events[i];
      if (event.level <= report_.peak_bytes) continue;
      report_.peak_bytes = event.level;
      report_.peak_us = event.time_us;
      events = i + 1;
    }
    std::vector<bool> is_alive(report_.blocks.size());
    for (size_t i = 0; i < is_alive.size(); ++i) is_alive[i] = report_.blocks[i].preexisting;
    for (size_t i = 0; i < events; ++i)
      is_alive[static_cast<size_t>(report_.events[i].block)] = !report_.events[i].is_free;
    for (size_t i = 0; i < is_alive.size(); ++i) {
      if (!is_alive[i]) continue;
      const auto& block = report_.blocks[i];
      report_.peak_blocks.push_back(static_cast<int64_t>(i));
      report_.peak_by_kind[static_cast<size_t>(block.kind)] += block.bytes;
    }
    std::stable_sort(report_.peak_blocks.begin(), report_.peak_blocks.end(), [&](int64_t a, int64_t b) {
      return report_.blocks[static_cast<size_t>(a)].bytes > report_.blocks[static_cast<size_t>(b)].bytes;
    });
  }

  const TimelineRecord& record_;
  MemoryTimelineReport report_;
  std::vector<Life> lives_;
  std::unordered_map<const void*, size_t> alive_;
  std::unordered_map<uint32_t, std::vector<size_t>> in_forward_;  ///< by thread: made in the present forward
};

}  // namespace

MemoryTimelineReport analyse(const TimelineRecord& record) { return Analysis(record).run(); }

}  // namespace refrain
