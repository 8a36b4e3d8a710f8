// Step server for our side of bench/peers/run: one training step per line on stdin, one JSON line per answer.
//
//   refrain-peer-steps MODEL [--threads N]
//   step STRATEGY    one step: ms, bytes after forward and at the peak over the level before the step, replayed operators
//   timing STRATEGY  the same with every recorded kernel timed: adds replayed_forward_ms, recorded_ms, replay_ms
//   check STRATEGY   gradients and buffers after one step, compared bit by bit with a plain step
//   plan BUDGET      the plan that steps under this budget run by, which is made when first asked for
//   first BUDGET     a new MemoryBudget, as in a training loop: its first step, which is traced and planned for, and its second
//   quit
//
// BUDGET is a STRATEGY too: budget:0.5, a part of the way from the least peak to the plain one, or budget:40000000, bytes at the
// peak over the level before the step. The protocol is that of torch_peer.py; `plain` is another name for `none`.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/torch.h>
#include <torch/version.h>

#include <chrono>
#include <cstring>
#include <exception>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "models/zoo.h"
#include "refrain/bytes.h"
#include "refrain/error.h"
#include "refrain/memory.h"
#include "refrain/memory_budget.h"
#include "refrain/tape.h"

namespace {

using Clock = std::chrono::steady_clock;
using refrain::models::Batch;
using refrain::models::ModelOptions;
using refrain::models::TrainableModel;

double ms_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      out += c;
    }
  }
  return out + "\"";
}

std::string shape_list(const torch::Tensor& t) { return fmt::format("[{}]", fmt::join(t.sizes(), ", ")); }

/// Its bytes in order. A tensor that LibTorch knows to be zero has none before it is cloned.
torch::Tensor plain(const torch::Tensor& t) { return (t._is_zerotensor() ? t.clone() : t).contiguous(); }

bool same_bits(const std::vector<torch::Tensor>& a, const std::vector<torch::Tensor>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].defined() != b[i].defined()) return false;
    if (!a[i].defined()) continue;
    if (a[i].sizes() != b[i].sizes() || a[i].dtype() != b[i].dtype()) return false;
    const auto x = plain(a[i]), y = plain(b[i]);
    if (std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) != 0) return false;
  }
  return true;
}

class StepServer {
 public:
  explicit StepServer(const std::string& name)
      : model_(refrain::models::make_model(name, sizes(name))), batch_(model_->synthetic_batch(1)) {
    model_->module().train();
  }

  std::string hello() const {
    std::vector<std::string> shapes, strategies;
    for (const auto& p : model_->module().parameters()) shapes.push_back(shape_list(p));
    for (const auto& s : model_->strategies()) strategies.push_back(quoted(s));
#ifdef NDEBUG
    const bool optimised = true;
#else
    const bool optimised = false;
#endif
    return fmt::format(
        R"({{"runtime": "refrain", "model": {}, "strategies": [{}], "threads": {}, "torch": {}, "compiler": {}, )"
        R"("optimised": {}, "parameter_shapes": [{}], "input_shape": {}}})",
        quoted(model_->name()), fmt::join(strategies, ", "), at::get_num_threads(), quoted(TORCH_VERSION),
        quoted("g++ " __VERSION__), optimised, fmt::join(shapes, ", "), shape_list(batch_.input));
  }

  std::string step(const std::string& strategy) {
    model_->module().zero_grad(/*set_to_none=*/true);
    use(strategy);
    refrain::reset_tape_counters();
    refrain::MemoryScope memory;
    const auto start = Clock::now();
    auto loss = model_->loss(batch_);
    const auto forward_end = Clock::now();
    const auto after_forward = memory.current();
    const auto regions = refrain::tape_stats().live_regions;
    const auto backward_start = Clock::now();
    loss.backward();
    const auto end = Clock::now();
    const auto peak = memory.peak();
    const auto stats = refrain::tape_stats();
    const double value = loss.item<double>();
    loss.reset();
    model_->module().zero_grad(/*set_to_none=*/true);
    const double forward_ms = ms_between(start, forward_end);
    check_followed();
    return fmt::format(
        R"("ms": {:.6f}, "forward_ms": {:.6f}, "after_forward_bytes": {}, "peak_bytes": {}, "left_bytes": {}, )"
        R"("recorded_ops": {}, "replayed_ops": {}, "replay_passes": {}, "regions": {}, "loss": {:.9g})",
        forward_ms + ms_between(backward_start, end), forward_ms, after_forward, peak, memory.current(),
        stats.recorded_ops, stats.replayed_ops, stats.replay_passes, regions, value);
  }

  std::string timing(const std::string& strategy) {
    const bool before = refrain::set_op_timing(true);
    const auto fields = step(strategy);
    refrain::set_op_timing(before);
    const auto stats = refrain::tape_stats();
    return fmt::format(R"({}, "recorded_ms": {:.6f}, "replayed_forward_ms": {:.6f}, "replay_ms": {:.6f})", fields,
                       stats.recorded_ms, stats.replayed_forward_ms, stats.replay_ms);
  }

  std::string plan(const std::string& budget) {
    const auto start = Clock::now();
    const auto& made = plan_of(budget);
    return fmt::format(
        R"("fits": {}, "planned_peak_bytes": {}, "planned_added_ms": {:.6f}, "lower_bound_ms": {:.6f}, "planning_ms": {:.6f})",
        made.fits(), made.peak() - level_, made.added_ms(), made.lower_bound_ms(), ms_between(start, Clock::now()));
  }

  std::string first(const std::string& budget) {
    use("none");
    model_->module().zero_grad(/*set_to_none=*/true);
    const auto asked = parsed(budget);
    if (asked.fraction)
      budget_.emplace(refrain::Budget::fraction(*asked.fraction));
    else
      budget_.emplace(refrain::Budget::bytes(refrain::memory_stats().current + asked.bytes));
    std::string fields;
    for (const char* which : {"first", "second"}) {
      refrain::MemoryScope memory;
      const auto start = Clock::now();
      model_->loss(batch_).backward();
      fields += fmt::format(R"("{0}_ms": {1:.6f}, "{0}_peak_bytes": {2}, )", which, ms_between(start, Clock::now()),
                            memory.peak());
      model_->module().zero_grad(/*set_to_none=*/true);
    }
    const auto stats = budget_->stats();
    budget_.reset();
    return fmt::format(R"({}"first_planning_ms": {:.6f}, "planned_steps": {})", fields, stats.planning_ms,
                       stats.planned_steps);
  }

  std::string check(const std::string& strategy) {
    const auto start = copies(model_->module().buffers());
    const auto want = outcome("plain", start);
    const auto got = outcome(strategy, start);
    return fmt::format(R"("gradients_bit_equal": {}, "buffers_bit_equal": {})",
                       same_bits(want.gradients, got.gradients), same_bits(want.buffers, got.buffers));
  }

 private:
  struct Outcome {
    std::vector<torch::Tensor> gradients, buffers;  // loss first
  };

  struct Budget {
    std::optional<double> fraction;
    refrain::Bytes bytes = 0;  ///< over the level before the step
  };

  static constexpr std::string_view kBudget = "budget:";

  static Budget parsed(const std::string& strategy) {
    if (!strategy.starts_with(kBudget))
      throw refrain::InvalidArgument("found '" + strategy + "', expected budget:0.5 or budget:BYTES");
    const auto text = strategy.substr(kBudget.size());
    if (text.find('.') == std::string::npos) return {.fraction = {}, .bytes = refrain::parse_bytes(text)};
    return {.fraction = std::stod(text), .bytes = 0};
  }

  /// The step without gradients before it, traced when first asked for: the least time of each operator in a few steps.
  const refrain::StepTrace& trace() {
    if (trace_) return *trace_;
    use("none");
    model_->module().zero_grad(/*set_to_none=*/true);
    level_ = refrain::memory_stats().current;
    const auto step = [&] {
      model_->module().zero_grad(/*set_to_none=*/true);
      model_->loss(batch_).backward();
    };
    trace_.emplace(refrain::profile(step, refrain::ProfileOptions().runs(3).model(model_->name())));
    model_->module().zero_grad(/*set_to_none=*/true);
    return *trace_;
  }

  const refrain::StepPlan& plan_of(const std::string& strategy) {
    const auto known = plans_.find(strategy);
    if (known != plans_.end()) return known->second;
    const auto budget = parsed(strategy);
    const auto& traced = trace();
    auto made = refrain::plan_step(traced, budget.fraction ? refrain::Budget::fraction(*budget.fraction)
                                                           : refrain::Budget::bytes(level_ + budget.bytes));
    return plans_.emplace(strategy, std::move(made)).first->second;
  }

  /// Steps from now on are of `strategy`. A budget lives until another strategy is asked for, as it would around a training loop.
  void use(const std::string& strategy) {
    if (budget_ && strategy == strategy_) return;
    budget_.reset();
    const auto* plan = strategy.starts_with(kBudget) ? &plan_of(strategy) : nullptr;
    model_->set_strategy(plan || strategy == "plain" ? "none" : strategy);
    if (plan) budget_.emplace(*plan);
    strategy_ = strategy;
  }

  /// @throws Error if a step under a budget was not as planned: what was measured is not what was asked for.
  void check_followed() const {
    if (!budget_) return;
    const auto stats = budget_->stats();
    if (stats.mismatched_steps > 0) throw refrain::InternalError("a step was not as planned: " + stats.first_mismatch);
  }

  /// The sizes that PEERS times; explicit, so that a changed preset cannot change what is compared.
  static ModelOptions sizes(const std::string& name) {
    ModelOptions o;
    if (name == "blocks-small") {
      o.batch = 2, o.seq = 128, o.depth = 12, o.width = 64;
    } else if (name == "blocks") {
      o.batch = 8, o.seq = 128, o.depth = 8, o.width = 256;
    } else if (name == "resnet50") {
      o.batch = 8, o.image_size = 128, o.classes = 1000;
    } else if (name == "unet") {
      o.batch = 4, o.image_size = 128, o.width = 16;
    }
    return o;
  }

  static std::vector<torch::Tensor> copies(const std::vector<torch::Tensor>& tensors) {
    std::vector<torch::Tensor> out;
    for (const auto& t : tensors) out.push_back(t.detach().clone());
    return out;
  }

  Outcome outcome(const std::string& strategy, const std::vector<torch::Tensor>& buffers) {
    auto& module = model_->module();
    {
      torch::NoGradGuard no_grad;
      auto now = module.buffers();
      for (size_t i = 0; i < now.size(); ++i) now[i].copy_(buffers[i]);
    }
    module.zero_grad(/*set_to_none=*/true);
    use(strategy);
    auto loss = model_->loss(batch_);
    loss.backward();
    Outcome result{{loss.detach()}, copies(module.buffers())};
    for (const auto& p : module.parameters()) result.gradients.push_back(p.grad());
    module.zero_grad(/*set_to_none=*/true);
    return result;
  }

  std::unique_ptr<TrainableModel> model_;
  Batch batch_;
  std::optional<refrain::StepTrace> trace_;
  refrain::Bytes level_ = 0;  ///< before the traced step
  std::map<std::string, refrain::StepPlan> plans_;
  std::string strategy_;
  std::optional<refrain::MemoryBudget> budget_;
};

std::string answer(StepServer& server, const std::string& command, const std::string& strategy) {
  try {
    std::string fields;
    if (command == "step") {
      fields = server.step(strategy);
    } else if (command == "timing") {
      fields = server.timing(strategy);
    } else if (command == "check") {
      fields = server.check(strategy);
    } else if (command == "plan") {
      fields = server.plan(strategy);
    } else if (command == "first") {
      fields = server.first(strategy);
    } else {
      throw std::invalid_argument("unknown command '" + command + "'; known: step, timing, check, plan, first, quit");
    }
    return "{" + fields + "}";
  } catch (const std::exception& error) {
    return fmt::format(R"({{"error": {}}})", quoted(error.what()));
  }
}

int usage() {
  std::cerr << "usage: refrain-peer-steps MODEL [--threads N]   (blocks-small, blocks, resnet50, unet)\n";
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2 && argc != 4) return usage();
  try {
    if (argc == 4) {
      if (std::string(argv[2]) != "--threads") return usage();
      const int threads = std::stoi(argv[3]);
      if (threads < 0) return usage();
      if (threads > 0) at::set_num_threads(threads);
    }
    refrain::install_memory_tracking();  // before the first tensor, as the torch side does
    StepServer server(argv[1]);
    std::cout << server.hello() << std::endl;
    for (std::string line; std::getline(std::cin, line) && line != "quit";) {
      std::istringstream words(line);
      std::string command, strategy;
      words >> command >> strategy;
      std::cout << answer(server, command, strategy) << std::endl;
    }
  } catch (const std::exception& error) {
    std::cerr << "refrain-peer-steps: " << error.what() << "\n";
    return 2;
  }
  return 0;
}
