#pragma once

#include <functional>
#include <string>
#include <vector>

#include "plan/coarse.h"
#include "plan/state.h"

namespace refrain::plan {

using Stays = std::vector<std::vector<Stay>>;

/// Place where forward ends and backward begins to read what it kept: the first operator of backward, or the place of
/// the baseline's peak if none is marked.
OpId turn(const Problem& problem);

/// Consecutive operators of forward.
struct Block {
  OpId begin = 0, end = 0;
  bool operator==(const Block&) const = default;
};

/// Cuts by module path: up to its first number, as `blocks.3` of `blocks.3.mlp`; a path without a number is in no
/// block. If that makes less than two, by the first part of each path, as `encoder` of `encoder.mlp`; again less than
/// two: empty.
std::vector<Block> blocks_by_scope(const Problem& problem);

/// Cuts all of forward into `parts` blocks of about the same time each.
std::vector<Block> equal_blocks(const Problem& problem, int32_t parts);

/// Checkpoints blocks: values that only a block reads are dropped after it, and recomputed together before the first
/// operator of backward that needs any of them. All others are kept. @param is_saved  which of a block's own values are
/// kept all the same; may be null.
Stays checkpoint_blocks(const Problem& problem, const std::vector<Block>& blocks,
                        const std::function<bool(ValueId)>& is_saved = nullptr);

/// Keeps the values that are `is_saved` over the turn; drops the rest after its last use in forward. For
/// `State::assign` with `retain`.
template <typename IsSaved>
Stays save_only(const Problem& problem, IsSaved&& is_saved) {
  const OpId at = turn(problem);
  Stays stays(problem.items.size());
  for (size_t v = 0; v < stays.size(); ++v) {
    const auto id = static_cast<ValueId>(v);
    const auto& item = problem.items[v];
    const auto reads = problem.reads[id];
    if (!item.movable || reads.empty()) continue;
    OpId last = reads.back();
    if (item.producer < at && last >= at && !is_saved(id)) {
      last = item.producer;
      for (const OpId place : reads)
        if (place < at) last = place;
    }
    stays[v].push_back({item.producer, last});
  }
  return stays;
}

/// Keeps every value until its last use.
inline Stays keep_all(const Problem& problem) {
  return save_only(problem, [](ValueId) { return true; });
}

}  // namespace refrain::plan
