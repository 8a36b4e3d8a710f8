#include "refrain/sequential.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "refrain/error.h"

namespace refrain {
namespace {

[[noreturn]] void refuse(const char* what, int64_t found, int64_t most) {
  throw InvalidArgument(
      fmt::format("[refrain::Segments] {} is {}, expected 1 to {}, the number of layers.", what, found, most));
}

}  // namespace

std::vector<Segment> Segments::split(int64_t layers) const {
  std::vector<Segment> pieces;
  if (layers == 0 && kind_ != Kind::kSizes) return pieces;
  const int64_t n = numbers_.empty() ? 0 : numbers_.front();
  const auto add = [&](int64_t count, bool checkpoint) {
    const int64_t begin = pieces.empty() ? 0 : pieces.back().end;
    if (count > 0) pieces.push_back({begin, begin + count, checkpoint});
  };
  switch (kind_) {
    case Kind::kEven:
      if (n < 1 || n > layers) refuse("the number of segments", n, layers);
      for (int64_t i = 0; i + 1 < n; ++i) add(layers / n, true);
      add(layers - (n - 1) * (layers / n), true);
      break;
    case Kind::kSizes:
      if (std::any_of(numbers_.begin(), numbers_.end(), [](int64_t size) { return size < 1; }) ||
          std::accumulate(numbers_.begin(), numbers_.end(), int64_t{0}) != layers)
        throw InvalidArgument(fmt::format(
            "[refrain::Segments] the sizes are [{}], expected numbers of 1 or more that add up to {}, the number of layers.",
            fmt::join(numbers_, ", "), layers));
      for (const auto size : numbers_) add(size, true);
      break;
    case Kind::kUniform:
      if (n < 1 || n > layers) refuse("the size of a segment", n, layers);
      for (int64_t at = 0; at < layers; at += n) add(std::min(n, layers - at), true);
      break;
    case Kind::kBlock:
      if (n < 1 || n > layers) refuse("the number of layers to checkpoint", n, layers);
      for (int64_t i = 0; i < n; ++i) add(1, true);
      add(layers - n, false);
      break;
    case Kind::kEveryNth:
      if (n < 1 || n > layers) refuse("n", n, layers);
      for (int64_t at = 0; at < layers; at += n) {
        const int64_t plain = std::min(n - 1, layers - at);
        add(plain, false);
        if (at + plain < layers) add(1, true);
      }
      break;
  }
  if (!checkpoint_last_ && !pieces.empty()) pieces.back().checkpoint = false;
  return pieces;
}

int64_t suggest_segments(int64_t layers) {
  if (layers < 0)
    throw InvalidArgument(fmt::format("[refrain::suggest_segments] `layers` is {}, expected 0 or more.", layers));
  const double root = std::sqrt(static_cast<double>(layers));
  const auto peak = [&](int64_t segments) { return segments - 1 + layers - (segments - 1) * (layers / segments); };
  int64_t best = std::max<int64_t>(1, std::llround(root));
  for (int64_t segments = 1; segments <= std::min<int64_t>(layers, std::llround(2 * root)); ++segments) {
    if (peak(segments) < peak(best)) best = segments;
  }
  return best;
}

}  // namespace refrain
