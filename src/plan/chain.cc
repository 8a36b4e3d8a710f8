#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "plan/best.h"
#include "plan/blocks.h"
#include "plan/strategies.h"

namespace refrain::plan {
namespace {

size_t index(int32_t id) { return static_cast<size_t>(id); }

/// What a block may keep for its backward.
struct Option {
  std::vector<ValueId> kept;  ///< of its own values
  int64_t bytes = 0;
  double ns = 0.0;  ///< of operators that backward recomputes for the rest
};

struct Link {
  Block block;
  std::vector<ValueId> own;     ///< values that backward reads, and of forward only the block
  std::vector<ValueId> passed;  ///< that later blocks read: its checkpoint
  int64_t own_bytes = 0, passed_bytes = 0;
  OpId back = 0;          ///< first operator of backward that reads any of them
  int64_t transient = 0;  ///< most bytes in use in its backward beyond what is saved
  double ns = 0.0;
  std::vector<Option> options;  ///< the first keeps all; bytes fall, time rises
};

/// F(i, j, m): least added time for forward and backward of links i to j with m units free for what they save, the
/// input of i being resident. Either link i keeps something and F(i + 1, j) follows; or links i to k - 1 run and keep
/// only what k reads, F(k, j) follows, and then they are recomputed: F(i, k - 1).
class Program {
 public:
  Program(const Problem& problem, const std::vector<Link>& links, int64_t free, int32_t levels)
      : p_(problem),
        links_(links),
        levels_(levels),
        unit_(std::max<int64_t>(1, free / levels)),
        sums_(links.size() + 1) {
    const auto n = static_cast<int32_t>(links.size());
    cells_.assign(links.size() * links.size() * index(levels + 1), {});
    for (size_t k = 0; k < links.size(); ++k) sums_[k + 1] = sums_[k] + links[k].ns;
    for (int32_t j = 0; j < n; ++j)
      for (int32_t i = j; i >= 0; --i)
        for (int32_t m = 0; m <= levels; ++m) fill(i, j, m);
  }

  /// @param m  units free. @return nothing if that is too little.
  Stays stays(int32_t m) const {
    const auto n = static_cast<int32_t>(links_.size());
    if (cell(0, n - 1, m).ns >= kNever) return {};
    Stays stays = keep_all(p_);
    for (const Link& link : links_)
      for (const auto* values : {&link.own, &link.passed})
        for (const ValueId v : *values) stays[index(v)].clear();
    write(0, n - 1, m, graph::kNone, stays);
    for (const Link& link : links_)
      for (const auto* values : {&link.own, &link.passed})
        for (const ValueId v : *values) leave(v, stays);
    return stays;
  }

 private:
  static constexpr double kNever = 1e300;
  struct Cell {
    double ns = kNever;
    int16_t option = -1;  ///< of link i; or
    int16_t split = -1;   ///< k
  };

  size_t at(int32_t i, int32_t j, int32_t m) const {
    return (index(i) * links_.size() + index(j)) * index(levels_ + 1) + index(m);
  }
  const Cell& cell(int32_t i, int32_t j, int32_t m) const { return cells_[at(i, j, m)]; }
  int32_t units(int64_t bytes) const {
    return static_cast<int32_t>(std::min<int64_t>((bytes + unit_ / 2) / unit_, levels_ + 1));
  }

  void fill(int32_t i, int32_t j, int32_t m) {
    Cell& best = cells_[at(i, j, m)];
    const Link& link = links_[index(i)];
    if (units(link.own_bytes + link.transient) > m) return;  // its backward alone
    for (size_t o = 0; o < link.options.size(); ++o) {
      const int32_t saved = units(link.options[o].bytes + link.passed_bytes);
      if (i < j && saved > m) continue;
      const double rest = i == j ? 0.0 : cell(i + 1, j, m - saved).ns;
      if (link.options[o].ns + rest < best.ns) best = {link.options[o].ns + rest, static_cast<int16_t>(o), -1};
    }
    for (int32_t k = i + 1; k <= j; ++k) {
      const int32_t saved = units(links_[index(k - 1)].passed_bytes);
      if (saved > m) continue;
      const double ns = sums_[index(k)] - sums_[index(i)] + cell(k, j, m - saved).ns + cell(i, k - 1, m).ns;
      if (ns < best.ns) best = {ns, -1, static_cast<int16_t>(k)};
    }
  }

  /// @param again  place from which the links are recomputed; `kNone`: the step's own run.
  void write(int32_t i, int32_t j, int32_t m, OpId again, Stays& stays) const {
    while (i <= j) {
      const Cell& here = cell(i, j, m);
      if (here.ns >= kNever) return;
      if (here.split >= 0) {
        const int32_t k = here.split;
        hold(links_[index(k - 1)].passed, again, stays);
        write(k, j, std::max(0, m - units(links_[index(k - 1)].passed_bytes)), again, stays);
        again = links_[index(k - 1)].back;
        j = k - 1;
        continue;
      }
      const Link& link = links_[index(i)];
      const Option& option = link.options[index(here.option)];
      hold(option.kept, again, stays);
      hold(link.passed, again, stays);
      m = std::max(0, m - units(option.bytes + link.passed_bytes));
      ++i;
    }
  }

  /// The step made it in any case, and needed it until the end of forward.
  void leave(ValueId v, Stays& stays) const {
    OpId last = p_.item(v).producer;
    for (const OpId place : p_.reads[v])
      if (place < turn_) last = place;
    stays[index(v)].push_back({p_.item(v).producer, last});
  }

  void hold(const std::vector<ValueId>& values, OpId again, Stays& stays) const {
    for (const ValueId v : values) {
      const OpId from = again == graph::kNone ? p_.item(v).producer : again;
      const OpId to = std::min(p_.item(v).death - 1, p_.ends);
      if (from < to) stays[index(v)].push_back({from, to});
    }
  }

  const Problem& p_;
  const std::vector<Link>& links_;
  int32_t levels_;
  int64_t unit_;
  std::vector<Cell> cells_;
  std::vector<double> sums_;
  OpId turn_ = turn(p_);
};

/// Keeps less and less of a block: values with most bytes for their operator's time are dropped first. A block is like
/// another if all its numbers are, so that the options of one serve all.
class Options {
 public:
  explicit Options(const Problem& problem) : p_(problem), own_index_(problem.items.size(), graph::kNone) {}

  void add(Link& link) {
    for (size_t k = 0; k < link.own.size(); ++k) own_index_[index(link.own[k])] = static_cast<int32_t>(k);
    for (const ValueId v : link.passed) own_index_[index(v)] = kPassed;
    add_options(link);
    for (const auto* values : {&link.own, &link.passed})
      for (const ValueId v : *values) own_index_[index(v)] = graph::kNone;
  }

 private:
  static constexpr int32_t kPassed = -2;

  void add_options(Link& link) {
    std::vector<int64_t> key;
    for (const ValueId v : link.own) {
      key.push_back(p_.item(v).bytes);
      key.push_back(p_.item(v).producer - link.block.begin);
      key.push_back(p_.op(p_.item(v).producer).ns);
    }
    auto& known = known_[key];
    if (known.empty()) known = work_out(link);
    for (const auto& kept : known) {
      Option option;
      std::vector<char> is_kept(link.own.size());
      for (const size_t k : kept) {
        is_kept[k] = true;
        option.kept.push_back(link.own[k]);
        option.bytes += p_.item(link.own[k]).bytes;
      }
      for (const OpId op : runs_again(link, is_kept)) option.ns += static_cast<double>(p_.op(op).ns);
      link.options.push_back(std::move(option));
    }
  }

  std::vector<std::vector<size_t>> work_out(const Link& link) const {
    std::vector<char> is_kept(link.own.size(), true);
    std::vector<std::vector<size_t>> options;
    const auto cost = [&] {
      double ns = 0.0;
      for (const OpId op : runs_again(link, is_kept)) ns += static_cast<double>(p_.op(op).ns);
      return ns;
    };
    const auto note = [&] {
      options.emplace_back();
      for (size_t k = 0; k < is_kept.size(); ++k)
        if (is_kept[k]) options.back().push_back(k);
    };
    note();
    if (link.own.size() > kFew) {  // in bundles, each value by its own operator
      std::vector<size_t> order(link.own.size());
      for (size_t k = 0; k < order.size(); ++k) order[k] = k;
      const auto density = [&](size_t k) {
        const Problem::Item& item = p_.item(link.own[k]);
        return static_cast<double>(item.bytes) / (static_cast<double>(p_.op(item.producer).ns) + 1.0);
      };
      std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return density(a) > density(b); });
      for (size_t k = 0; k < order.size(); ++k) {
        is_kept[order[k]] = false;
        if (k + 1 == order.size() || k % (order.size() / 24 + 1) == 0) note();
      }
      return options;
    }
    double before = 0.0;
    for (size_t left = link.own.size(); left > 0; --left) {
      size_t best = 0;
      double best_score = -1.0;
      for (size_t v = 0; v < is_kept.size(); ++v) {
        if (!is_kept[v]) continue;
        is_kept[v] = false;
        const double score = (cost() - before + 1.0) / static_cast<double>(p_.item(link.own[v]).bytes);
        is_kept[v] = true;
        if (best_score >= 0.0 && score >= best_score) continue;
        best_score = score;
        best = v;
      }
      is_kept[best] = false;
      before = cost();
      note();
    }
    return options;
  }

  /// Operators of the block that have to, for what it reads itself and does not keep.
  std::vector<OpId> runs_again(const Link& link, const std::vector<char>& is_kept) const {
    std::vector<OpId> ops;
    std::vector<char> is_wanted(index(link.block.end - link.block.begin));
    const auto want = [&](ValueId v) {
      const OpId producer = p_.item(v).producer;
      if (producer < link.block.begin || producer >= link.block.end) return;
      const int32_t own = own_index_[index(v)];
      if (own == kPassed || (own >= 0 && is_kept[index(own)])) return;
      is_wanted[index(producer - link.block.begin)] = true;
    };
    for (const ValueId v : link.own) want(v);
    for (OpId op = link.block.end; op-- > link.block.begin;) {
      if (!is_wanted[index(op - link.block.begin)]) continue;
      ops.push_back(op);
      for (const ValueId v : p_.op(op).inputs) want(v);
    }
    return ops;
  }

  static constexpr size_t kFew = 40;

  const Problem& p_;
  std::vector<int32_t> own_index_;  // of the link under way: in `own`, or `kPassed`
  std::map<std::vector<int64_t>, std::vector<std::vector<size_t>>> known_;
};

/// Cuts all of forward into at most `most` blocks: operators in no block join the one before.
std::vector<Block> cover(const Problem& problem, size_t most) {
  std::vector<Block> blocks = blocks_by_scope(problem);
  if (blocks.empty())
    blocks =
        equal_blocks(problem, static_cast<int32_t>(std::min<double>(
                                  static_cast<double>(most), 2.0 * std::sqrt(static_cast<double>(turn(problem))))));
  if (blocks.empty()) return blocks;
  blocks.front().begin = 0;
  for (size_t k = 0; k + 1 < blocks.size(); ++k) blocks[k].end = blocks[k + 1].begin;
  blocks.back().end = turn(problem);
  const size_t together = (blocks.size() + most - 1) / most;
  std::vector<Block> merged;
  for (size_t k = 0; k < blocks.size(); k += together)
    merged.push_back({blocks[k].begin, blocks[std::min(k + together, blocks.size()) - 1].end});
  return merged;
}

std::vector<Link> make_links(const Problem& problem, const std::vector<Block>& blocks) {
  const OpId at = turn(problem);
  Options options(problem);
  std::vector<Link> links;
  for (const Block& block : blocks) {
    Link link;
    link.block = block;
    link.back = problem.ends;
    for (OpId i = block.begin; i < block.end; ++i) {
      link.ns += static_cast<double>(problem.op(i).ns);
      for (const ValueId v : problem.op(i).outputs) {
        const auto reads = problem.reads[v];
        if (!problem.item(v).movable || reads.empty()) continue;
        const bool leaves_block =
            std::any_of(reads.begin(), reads.end(), [&](OpId p) { return p >= block.end && p < at; });
        const auto later = std::lower_bound(reads.begin(), reads.end(), at);
        if (later != reads.end()) link.back = std::min(link.back, *later);
        if (leaves_block) {
          link.passed.push_back(v);
          link.passed_bytes += problem.item(v).bytes;
        } else if (later != reads.end()) {
          link.own.push_back(v);
          link.own_bytes += problem.item(v).bytes;
        }
      }
    }
    options.add(link);
    links.push_back(std::move(link));
  }
  return links;
}

}  // namespace

bool solve_chain(State& state, int64_t budget, Effort& effort, const Visit& visit) {
  const Problem& problem = state.problem();
  Best best(state, budget, effort, visit);
  best.attempt(keep_all(problem), false);
  std::vector<Link> links = make_links(problem, cover(problem, 48));
  if (links.empty()) return best.finish();
  constexpr int32_t kLevels = 120;
  int64_t least = std::numeric_limits<int64_t>::max();
  for (size_t s = 0; s < problem.fixed.size(); s += 2) least = std::min(least, problem.fixed[s]);
  const int64_t free = std::max<int64_t>(1, budget - least);
  const Program program(problem, links, free, kLevels);
  effort.spend(static_cast<int64_t>(links.size() * links.size() * links.size()) * kLevels / 24);
  // what else is in use is known only by running it: the largest limit that fits
  best.levels(kLevels, [&](int64_t less) {
    if (best.is_over()) return false;
    const Stays stays = program.stays(kLevels - static_cast<int32_t>(less));
    return stays.empty() || best.attempt(stays, true);
  });
  return best.finish();
}

}  // namespace refrain::plan
