#pragma once

#include <optional>
#include <string>

namespace refrain::cli {

/// What a paper says a memory limit costs a model: `limit_gb` instead of the `plain_gb` that a step takes without one,
/// all tensors of the device counted, parameters too.
struct PublishedPoint {
  std::string method;  ///< "DTR"
  std::string model;
  double limit_gb, plain_gb;
  double overhead;  ///< added time as a fraction of the baseline's step
  std::string source;

  double percent() const { return 100.0 * limit_gb / plain_gb; }  ///< the limit, of what is taken without one
};

/// Of the family of models that `model`, one of the zoo's names, belongs to; none if nothing was published of it.
std::optional<PublishedPoint> published_point(const std::string& model);

}  // namespace refrain::cli
