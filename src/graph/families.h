#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "graph/builder.h"

/// Synthetic steps for the tests and benchmarks of planners.
namespace refrain::graph {

/// Builds forward and backward of a network from its forward.
class JointBuilder {
 public:
  struct Layer {
    std::string name;
    std::vector<ValueId> inputs;
    int64_t bytes = 1;          ///< of the output; in place: ignored
    int64_t ns = 1;             ///< backward takes as long for each input that needs a gradient
    bool saves_inputs = false;  ///< backward reads them
    bool saves_output = false;
    bool in_place = false;  ///< overwrites its first input
    int64_t workspace = 0;
    bool random = false;
  };

  ValueId input(int64_t bytes);      ///< needs no gradient
  ValueId parameter(int64_t bytes);  ///< its gradient outlives the step
  ValueId layer(const Layer& layer);
  void scope(std::string path) { scope_ = std::move(path); }

  /// Adds backward from the last layer on. Overwritten values are not saved.
  Graph finish(std::string model);

 private:
  struct Done {
    Layer layer;
    std::string scope;
    ValueId output = kNone;
  };

  void backward(const Done& done);
  void accumulate(ValueId of, ValueId grad, const std::string& scope);

  Builder builder_;
  std::string scope_;
  std::vector<Done> layers_;
  std::vector<char> needs_grad_, is_parameter_;  // by value
  std::vector<ValueId> grads_;                   // by value of forward
};

enum class Family { kChain, kResidual, kUnet, kDense, kTransformer };
inline constexpr Family kFamilies[] = {Family::kChain, Family::kResidual, Family::kUnet, Family::kDense,
                                       Family::kTransformer};

std::string family_name(Family family);

/// Makes a step of about `ops` operators, forward and backward, at most 100,000 or so. Sizes and times of layers vary a
/// little by `seed`. Cost: linear. Deterministic.
Graph make_family(Family family, int32_t ops, uint64_t seed = 0);

/// Makes a transformer of `layers` layers of width 256, 4 heads, 128 tokens, batch 8, in 32 bits.
Graph make_transformer(int32_t layers, uint64_t seed = 0);

}  // namespace refrain::graph
