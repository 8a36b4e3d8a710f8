#pragma once

#include <torch/nn/modules/container/any.h>
#include <torch/nn/modules/container/sequential.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "refrain/api.h"
#include "refrain/checkpoint.h"
#include "refrain/detail/trace_scope.h"

namespace refrain {

/// Describes layers [begin, end) that run as one.
struct Segment {
  int64_t begin = 0;
  int64_t end = 0;
  bool checkpoint = true;  ///< in a region of their own
  bool operator==(const Segment&) const = default;
};

/// Selects how to cut a sequence of layers into segments.
class REFRAIN_API Segments {
 public:
  /// Cuts into pieces of floor(layers / segments) layers, the last with the rest. The last runs without a region, as in
  /// torch.utils.checkpoint.checkpoint_sequential: backward needs its activations first.
  /// @param segments  number of pieces; 1 to the number of layers.
  Segments(int64_t segments) : Segments(Kind::kEven, {segments}) {}  // NOLINT: `checkpoint_sequential(seq, 4, x)`

  /// Cuts as the constructor does.
  /// @param segments  number of pieces; 1 to the number of layers.
  [[nodiscard]] static Segments even(int64_t segments) { return {Kind::kEven, {segments}}; }

  /// Cuts into pieces of these sizes; the last runs without a region.
  /// @param layers  size of each piece; they must add up to the number of layers.
  [[nodiscard]] static Segments sizes(std::vector<int64_t> layers) { return {Kind::kSizes, std::move(layers)}; }

  /// Cuts into pieces of one size, the last of what remains; all of them checkpointed. (Megatron: uniform.)
  /// @param layers  size of a piece; 1 to the number of layers.
  [[nodiscard]] static Segments uniform(int64_t layers) {
    return Segments(Kind::kUniform, {layers}).checkpoint_last(true);
  }

  /// Checkpoints each of the first `layers` layers on its own; the others run without a region. (Megatron: block.)
  /// @param layers  1 to the number of layers.
  [[nodiscard]] static Segments block(int64_t layers) { return Segments(Kind::kBlock, {layers}).checkpoint_last(true); }

  /// Checkpoints layers n-1, 2n-1, ... each on its own; the others run without a region.
  /// @param n  1 to the number of layers.
  [[nodiscard]] static Segments every_nth(int64_t n) { return Segments(Kind::kEveryNth, {n}).checkpoint_last(true); }

  /// Selects whether the last piece is checkpointed as well.
  Segments& checkpoint_last(bool value) {
    checkpoint_last_ = value;
    return *this;
  }

  /// Cuts `layers` layers into pieces.
  /// @param layers  number of layers.
  /// @return  the pieces in order, without gaps or empty ones.
  /// @throws InvalidArgument  if a count is below 1 or above `layers`, or if the sizes do not add up.
  [[nodiscard]] std::vector<Segment> split(int64_t layers) const;

 private:
  enum class Kind { kEven, kSizes, kUniform, kBlock, kEveryNth };
  Segments(Kind kind, std::vector<int64_t> numbers) : kind_(kind), numbers_(std::move(numbers)) {}

  Kind kind_;
  std::vector<int64_t> numbers_;
  bool checkpoint_last_ = false;
};

/// Returns the number of segments with the lowest peak for a sequence of `layers` equal layers under `Segments(s)`:
/// sqrt(layers) or near it, at least 1.
///
/// With s segments, forward keeps s boundaries and backward recomputes one segment of n/s layers at a time, so the peak
/// is s + n/s activations; its derivative 1 - n/s^2 is zero at s = sqrt(n), where the peak is 2 sqrt(n) instead of n.
/// Where s does not divide n the last segment takes the rest, so that a neighbour may be better: 8 for 80 layers (peak
/// 17), not 9 (24).
/// @param layers  0 or more.
/// @throws InvalidArgument  if `layers` is negative.
/// Cost: O(sqrt(layers)).
/// Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016.
[[nodiscard]] REFRAIN_API int64_t suggest_segments(int64_t layers);

namespace detail {

/// Calls one layer, which may be an `AnyModule`.
template <typename Layer>
torch::Tensor run_layer(Layer& layer, torch::Tensor x) {
  if constexpr (requires { layer.template forward<torch::Tensor>(std::move(x)); })
    return layer.template forward<torch::Tensor>(std::move(x));  // AnyModule
  else
    return call(layer, std::move(x));
}

/// Runs `layers` segment by segment: as they are, or copies of them where a region calls them again when its caller may
/// be gone.
template <typename Layers>
torch::Tensor run_segments(Layers& layers, const Segments& segments, torch::Tensor x,
                           const CheckpointOptions& options) {
  using Layer = std::remove_cvref_t<decltype(layers[0])>;
  for (size_t i = 0; i < layers.size(); ++i) refuse_null(layers[i]);
  int64_t number = 0;
  for (const auto& [begin, end, in_region] : segments.split(static_cast<int64_t>(layers.size()))) {
    const TraceScope scope("segments", number++);
    const auto run = [&layers, begin = begin, end = end](torch::Tensor input) {
      for (auto i = begin; i < end; ++i) input = run_layer(layers[static_cast<size_t>(i)], std::move(input));
      return input;
    };
    if (!in_region) {
      x = run(x);
    } else if (!reruns(options)) {
      x = checkpoint(options, run, x);
    } else if constexpr (can_copy<Layer>()) {
      std::vector<Layer> kept;
      for (auto i = begin; i < end; ++i) kept.push_back(layers[static_cast<size_t>(i)]);
      x = checkpoint(
          options,
          [kept](torch::Tensor input) mutable {
            for (auto& layer : kept) input = run_layer(layer, std::move(input));
            return input;
          },
          x);
    } else {
      RerunScope(options).refuse_uncopyable();
    }
  }
  return x;
}

}  // namespace detail

/// Runs a `torch::nn::Sequential` of layers from tensor to tensor, each segment in a region of its own.
/// @param seq       layers that take a tensor and return one.
/// @param segments  how to cut them: `4`, or a `Segments`.
/// @param input     of the first layer.
/// @param options   of each region.
/// @return  the result of the last layer.
/// @throws InvalidArgument  as `Segments::split`, and for an empty holder or layer.
inline torch::Tensor checkpoint_sequential(torch::nn::Sequential seq, const Segments& segments, torch::Tensor input,
                                           const CheckpointOptions& options = {}) {
  detail::refuse_null(seq);
  std::vector<torch::nn::AnyModule> layers(seq->begin(), seq->end());
  return detail::run_segments(layers, segments, std::move(input), options);
}

/// Runs other sequences of layers, each segment in a region of its own.
/// @param layers    anything with `size()` and `operator[]` whose elements `checkpoint` can call with a tensor: vectors
///                  of functions, of module holders, of `std::shared_ptr` to modules, of `AnyModule`.
/// @param segments  as above.
/// @param input     of the first layer.
/// @param options   of each region.
/// @return  the result of the last layer.
/// @throws InvalidArgument  as above.
template <typename Layers>
requires requires(Layers& layers) {
  layers.size();
  layers[0];
}
torch::Tensor checkpoint_sequential(Layers&& layers, const Segments& segments, torch::Tensor input,
                                    const CheckpointOptions& options = {}) {
  return detail::run_segments(layers, segments, std::move(input), options);
}

}  // namespace refrain
