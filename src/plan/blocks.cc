#include "plan/blocks.h"

#include <algorithm>
#include <cctype>

namespace refrain::plan {
namespace {

size_t index(int32_t id) { return static_cast<size_t>(id); }

/// Module path up to its first part that is a number; empty: it has none.
std::string numbered_part(const std::string& scope) {
  for (size_t begin = 0; begin < scope.size();) {
    const size_t end = std::min(scope.find('.', begin), scope.size());
    const bool is_number = end > begin && std::all_of(scope.begin() + static_cast<int64_t>(begin),
                                                      scope.begin() + static_cast<int64_t>(end),
                                                      [](unsigned char c) { return std::isdigit(c) != 0; });
    if (is_number) return scope.substr(0, end);
    begin = end + 1;
  }
  return "";
}

std::string first_part(const std::string& scope) { return scope.substr(0, scope.find('.')); }

/// Operators of forward in a row whose module path has one name. Less than two: none.
std::vector<Block> blocks_by_name(const Problem& problem, std::string (*name_of)(const std::string& scope)) {
  std::vector<Block> blocks;
  std::string name;
  const OpId end = turn(problem);
  for (OpId i = 0; i < end; ++i) {
    const std::string here = name_of(problem.op(i).scope);
    if (here.empty()) {
      name.clear();
      continue;
    }
    if (here != name) blocks.push_back({i, i});
    name = here;
    blocks.back().end = i + 1;
  }
  if (blocks.size() < 2) blocks.clear();
  return blocks;
}

}  // namespace

OpId turn(const Problem& problem) {
  if (problem.backward_begins > 0 && problem.backward_begins < problem.ends) return problem.backward_begins;
  return State(problem).profile().most_at() / 2;
}

std::vector<Block> blocks_by_scope(const Problem& problem) {
  auto blocks = blocks_by_name(problem, numbered_part);
  return blocks.empty() ? blocks_by_name(problem, first_part) : blocks;
}

std::vector<Block> equal_blocks(const Problem& problem, int32_t parts) {
  const OpId end = turn(problem);
  double total = 0.0, so_far = 0.0;
  for (OpId i = 0; i < end; ++i) total += static_cast<double>(problem.op(i).ns) + 1.0;
  std::vector<Block> blocks;
  int32_t part = -1;
  for (OpId i = 0; i < end; ++i) {
    const auto here = std::min(parts - 1, static_cast<int32_t>(so_far / total * parts));
    if (here != part) blocks.push_back({i, i});
    part = here;
    blocks.back().end = i + 1;
    so_far += static_cast<double>(problem.op(i).ns) + 1.0;
  }
  return blocks;
}

Stays checkpoint_blocks(const Problem& problem, const std::vector<Block>& blocks,
                        const std::function<bool(ValueId)>& is_saved) {
  const OpId at = turn(problem);
  Stays stays = keep_all(problem);
  for (const Block& block : blocks) {
    OpId back = problem.ends;
    std::vector<ValueId> own, read;
    for (OpId i = block.begin; i < block.end; ++i) {
      read.insert(read.end(), problem.op(i).inputs.begin(), problem.op(i).inputs.end());
      for (const ValueId v : problem.op(i).outputs) {
        if (!problem.item(v).movable) continue;
        const auto reads = problem.reads[v];
        const bool leaves_block =
            std::any_of(reads.begin(), reads.end(), [&](OpId p) { return p >= block.end && p < at; });
        const auto later = std::lower_bound(reads.begin(), reads.end(), at);
        if (leaves_block || later == reads.end() || (is_saved && is_saved(v))) continue;
        own.push_back(v);
        back = std::min(back, *later);
      }
    }
    for (const ValueId v : own) {
      const auto reads = problem.reads[v];
      const auto later = std::lower_bound(reads.begin(), reads.end(), at);
      const OpId last = later == reads.begin() ? problem.item(v).producer : *(later - 1);
      stays[index(v)] = {{problem.item(v).producer, last}, {back, reads.back()}};
    }
    if (own.empty()) continue;
    for (const ValueId v : read) {  // inputs stay until the block is recomputed
      const Problem::Item& item = problem.item(v);
      if (!item.movable || item.producer >= block.begin || stays[index(v)].size() != 1) continue;
      stays[index(v)][0].to = std::max(stays[index(v)][0].to, std::min(back, item.death - 1));
    }
  }
  return stays;
}

}  // namespace refrain::plan
