#include "refrain/explain.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <iostream>

#include "refrain/bytes.h"
#include "refrain/error.h"
#include "tape/engine.h"
#include "tape/thread_state.h"
#include "trace/observer.h"

namespace refrain {
namespace {

using Line = std::array<std::string, 6>;

Line line_of(const SavedTensor& t) {
  const auto bytes = format_bytes(t.bytes);
  return {t.region < 0 ? "-" : std::to_string(t.region),
          t.op.empty() ? "-" : t.op,
          fmt::format("{} [{}]", c10::toString(t.dtype), fmt::join(t.sizes, ", ")),
          t.shared ? "(" + bytes + ")" : bytes,
          t.referenced_elsewhere ? "anyway"
          : t.kept               ? "yes"
                                 : "no",
          t.reason};
}

}  // namespace

std::string SavedReport::text() const {
  std::vector<Line> lines{{"region", "made by", "tensor", "bytes", "kept", "why"}};
  for (const auto& tensor : tensors) lines.push_back(line_of(tensor));
  std::array<size_t, 5> width{};
  for (const auto& line : lines)
    for (size_t i = 0; i < width.size(); ++i) width[i] = std::max(width[i], line[i].size());
  const bool any_shared = std::any_of(tensors.begin(), tensors.end(), [](const auto& t) { return t.shared; });
  std::string text;
  for (const auto& [region, op, tensor, bytes, kept, why] : lines)
    text += fmt::format("{:>{}}  {:<{}}  {:<{}}  {:>{}}  {:<{}}  {}\n", region, width[0], op, width[1], tensor,
                        width[2], bytes, width[3], kept, width[4], why);
  text += fmt::format("{} kept for backward alone, {} alive anyway, {} to recompute. Regions: {}. ",
                      format_bytes(kept_bytes), format_bytes(referenced_elsewhere_bytes),
                      format_bytes(recomputed_bytes), regions);
  text += any_shared ? "Each storage counts once: (bytes) were counted above.\n" : "Each storage counts once.\n";
  for (const auto& insight : hints) text += insight + "\n";
  return text;
}

namespace detail {

SavedObserver::SavedObserver() : observer_(std::make_unique<tape::Observer>()) {
  auto& thread = tape::ThreadState::get();
  if (thread.region || thread.saver)
    throw InvalidArgument(
        "[refrain::saved_tensors] called inside a checkpoint region, which saves the tensors itself. Call it around "
        "the region.");
  tape::install();
  before_ = std::exchange(thread.observer, observer_.get());
}

SavedObserver::~SavedObserver() { tape::ThreadState::get().observer = before_; }

SavedReport SavedObserver::report() const { return observer_->report(); }

void print(const SavedReport& report) { std::cout << report.text() << std::flush; }

}  // namespace detail
}  // namespace refrain
