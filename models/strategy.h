#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "refrain/checkpoint.h"
#include "refrain/offload.h"
#include "refrain/sequential.h"

namespace refrain::models {

/// What the name of a strategy says: where a model opens regions, and how they behave.
struct Strategy {
  std::string place = "none";                   ///< as the model calls it; what follows a colon left out
  std::optional<CheckpointOptions> block = {};  ///< of a region around each block, if the place is there
  std::optional<Segments> segments = {};        ///< of a row of layers
  std::optional<OffloadTo> offload = {};        ///< where `block` is to offload to
};

/// Reads one of `places`, with what some of them take after a colon:
///
/// * `per_block`, also `checkpoint`: each block, keeping nothing;
/// * `selective`, `selective:POLICY`: each block, keeping what POLICY says, `compute_intensive` if left out; names as of the
///   functions in refrain/selective.h without `save_` and `_saveable`;
/// * where there is `selective`: `offload:disk`, `offload:host`, each block: what is compute intensive goes there, the rest is
///   computed again;
/// * for a row of `layers` > 0, whether in `places` or not: `per_layer`, `segments` (the suggested number), `segments:N`.
/// @param model  its name, for messages.
/// @throws InvalidArgument  that lists what is known, nearest first.
Strategy parse_strategy(const std::string& text, const std::string& model, std::vector<std::string> places,
                        int64_t layers);

/// All of `known`, comma-separated, those most like `name` first.
std::string list_known(const std::string& name, const std::vector<std::string>& known);

}  // namespace refrain::models
