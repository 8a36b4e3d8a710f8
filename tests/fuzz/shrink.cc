#include <algorithm>
#include <cctype>
#include <chrono>
#include <sstream>

#include "random_programs.h"
#include "refrain/memory.h"

namespace refrain::fuzz {
namespace {

/// The steps in order, as places to try an edit at.
void collect_paths(const std::vector<Step>& steps, std::vector<size_t>& path, std::vector<std::vector<size_t>>& out) {
  for (size_t i = 0; i < steps.size(); ++i) {
    path.push_back(i);
    out.push_back(path);
    collect_paths(steps[i].body, path, out);
    path.pop_back();
  }
}

std::vector<Step>* parent_of(Program& program, const std::vector<size_t>& path) {
  std::vector<Step>* list = &program.steps;
  for (size_t i = 0; i + 1 < path.size(); ++i) {
    if (path[i] >= list->size()) return nullptr;
    list = &(*list)[path[i]].body;
  }
  return path.back() < list->size() ? list : nullptr;
}

Program without(Program program, const std::vector<size_t>& path) {
  std::vector<Step>* list = parent_of(program, path);
  list->erase(list->begin() + static_cast<std::ptrdiff_t>(path.back()));
  return program;
}

Program unwrapped(Program program, const std::vector<size_t>& path) {
  std::vector<Step>* list = parent_of(program, path);
  const auto at = list->begin() + static_cast<std::ptrdiff_t>(path.back());
  std::vector<Step> body = at->body;
  const auto next = list->erase(at);
  list->insert(next, body.begin(), body.end());
  return program;
}

/// Ways to say less about how a region is opened.
void (*const kSimpler[])(RegionOptions&) = {
    [](RegionOptions& o) { o = RegionOptions(); },     [](RegionOptions& o) { o.policy.second = -1; },
    [](RegionOptions& o) { o.policy.scoped = false; }, [](RegionOptions& o) { o.strict = o.debug = false; },
    [](RegionOptions& o) { o.early_stop = true; },     [](RegionOptions& o) { o.inputs = RegionOptions::kInMemory; },
    [](RegionOptions& o) { o.is_noexcept = false; },
};

// What failed, without numbers and names.
std::string kind_of(const std::string& wrong) {
  return wrong.substr(0, std::min(wrong.find_first_of("0123456789"), wrong.find('`')));
}

/// Without the inputs that nothing mentions.
std::string without_unused_inputs(const std::string& text) {
  std::istringstream lines(text);
  std::string kept;
  for (std::string line; std::getline(lines, line);) {
    const size_t mark = line.find(" = input ");
    if (mark != std::string::npos) {
      const std::string name = line.substr(2, mark - 2);
      size_t mentions = 0;
      for (size_t at = text.find(name); at != std::string::npos; at = text.find(name, at + 1)) {
        const char before = at == 0 ? ' ' : text[at - 1];
        const char after = at + name.size() < text.size() ? text[at + name.size()] : ' ';
        if (!std::isalnum(static_cast<unsigned char>(before)) && !std::isalnum(static_cast<unsigned char>(after))) {
          ++mentions;
        }
      }
      if (mentions < 2) continue;
    }
    kept += line + "\n";
  }
  return kept;
}

class Shrinking {
 public:
  Shrinking(Program program, Kind kind, double seconds)
      : program_(std::move(program)),
        kind_(kind),
        why_(kind_of(judge(program_, kind).why)),
        end_(Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds))) {}

  Program run() {
    for (bool smaller = true; smaller && !out_of_time();) {
      smaller = drop_steps();
      smaller |= simplify_ending();
      smaller |= simplify_regions();
    }
    return program_;
  }

 private:
  using Clock = std::chrono::steady_clock;

  bool out_of_time() const { return Clock::now() > end_; }

  bool accept_if_it_fails(Program candidate) {
    const Judgement judgement = judge(candidate, kind_);
    if (judgement.verdict != Verdict::kFailed || kind_of(judgement.why) != why_) return false;
    program_ = std::move(candidate);
    return true;
  }

  std::vector<std::vector<size_t>> paths() {
    std::vector<std::vector<size_t>> all;
    std::vector<size_t> path;
    collect_paths(program_.steps, path, all);
    return all;
  }

  bool drop_steps() {
    bool smaller = false;
    const auto all = paths();
    for (auto at = all.rbegin(); at != all.rend() && !out_of_time(); ++at) {
      const std::vector<Step>* list = parent_of(program_, *at);
      if (list == nullptr) continue;
      const bool block = !(*list)[at->back()].body.empty();
      if (!accept_if_it_fails(without(program_, *at)) && !(block && accept_if_it_fails(unwrapped(program_, *at))))
        continue;
      smaller = true;
      if (block) break;  // the paths are stale
    }
    return smaller;
  }

  bool simplify_ending() {
    bool smaller = false;
    for (int fewer = 1; fewer < program_.iterations && !out_of_time(); ++fewer) {
      Program candidate = program_;
      candidate.iterations = fewer;
      if (accept_if_it_fails(std::move(candidate))) smaller = true;
    }
    if (program_.optimizer != Optimizer::kNone && !out_of_time()) {
      Program candidate = program_;
      candidate.optimizer = Optimizer::kNone;
      smaller |= accept_if_it_fails(std::move(candidate));
    }
    for (size_t i = program_.backwards.size(); i-- > 0 && program_.backwards.size() > 1 && !out_of_time();) {
      Program candidate = program_;
      candidate.backwards.erase(candidate.backwards.begin() + static_cast<std::ptrdiff_t>(i));
      smaller |= accept_if_it_fails(std::move(candidate));
    }
    for (size_t i = 0; i < program_.backwards.size() && !out_of_time(); ++i) {
      if (program_.backwards[i].kind == Backward::kBackward && !program_.backwards[i].elsewhere) continue;
      Program candidate = program_;
      candidate.backwards[i].elsewhere = false;
      smaller |= program_.backwards[i].elsewhere && accept_if_it_fails(candidate);
      candidate.backwards[i].kind = Backward::kBackward;
      smaller |= program_.backwards[i].kind != Backward::kBackward && accept_if_it_fails(std::move(candidate));
    }
    if (program_.loss_in_region && !out_of_time()) {
      Program candidate = program_;
      candidate.loss_in_region = false;
      smaller |= accept_if_it_fails(std::move(candidate));
    }
    return smaller;
  }

  bool simplify_regions() {
    bool smaller = simplify_options([](Program& program) { return &program.loss_options; });
    for (const auto& path : paths()) {
      smaller |= simplify_options([&](Program& program) { return &(*parent_of(program, path))[path.back()].options; });
    }
    return smaller;
  }

  template <typename Find>
  bool simplify_options(Find find) {
    bool smaller = false;
    for (const auto simplify : kSimpler) {
      if (out_of_time()) break;
      Program candidate = program_;
      simplify(*find(candidate));
      if (to_text(*find(candidate)) == to_text(*find(program_))) continue;
      smaller |= accept_if_it_fails(std::move(candidate));
    }
    return smaller;
  }

  Program program_;
  const Kind kind_;
  const std::string why_;
  const Clock::time_point end_;
};

}  // namespace

Program shrink(Program program, Kind kind, double seconds) {
  return Shrinking(std::move(program), kind, seconds).run();
}

std::string to_text(const Program& program) {
  const std::string title =
      "program of seed " + std::to_string(program.seed) + (program.poison ? ", poisoned" : "") + "\n";
  std::string text = title;
  // LibTorch may stop in the middle, at a backward inside a step.
  if (!run(program, Mode::kPlain, &text).error.empty()) {
    text = title;
    run(program, Mode::kTwin, &text);
  }
  return without_unused_inputs(text);
}

std::string to_text(const Program& program, Kind kind) {
  const MemoryScope memory;
  const int64_t level = memory_stats().current;
  run(program, Mode::kPlain);
  const auto surroundings = surroundings_of(kind, program.seed, level, memory.peak());
  std::string text = mode_of(kind, program.seed) == Mode::kPlain ? "ours, regions as calls\n" : "ours\n";
  run(program, mode_of(kind, program.seed), &text, surroundings.get());
  return without_unused_inputs(text);
}

}  // namespace refrain::fuzz
