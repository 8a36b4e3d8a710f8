#include "refrain/data_parallel.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/nn/modules/embedding.h>

#include <atomic>
#include <sstream>
#include <torch/csrc/distributed/c10d/logger.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>
#include <unordered_set>

#include "intercept/after_backward.h"
#include "rerun/op_trace.h"
#include "train/errors.h"
#include "train/model_agreement.h"

namespace refrain::detail {
namespace {

using at::Tensor;
using torch::nn::Module;

constexpr size_t kBroadcastBytes = size_t{250} << 20;

/// Lists tensors once that have several names.
std::vector<Tensor> unique(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> once;
  std::unordered_set<c10::TensorImpl*> seen;
  for (const auto& tensor : tensors) {
    if (seen.insert(tensor.unsafeGetTensorImpl()).second) once.push_back(tensor);
  }
  return once;
}

std::unordered_set<c10::TensorImpl*> parameters_with_sparse_gradient(Module& module) {
  std::unordered_set<c10::TensorImpl*> found;
  const auto add = [&](Module& layer) {
    auto* const embedding = dynamic_cast<torch::nn::EmbeddingImpl*>(&layer);
    auto* const bag = dynamic_cast<torch::nn::EmbeddingBagImpl*>(&layer);
    if (embedding && embedding->options.sparse()) found.insert(embedding->weight.unsafeGetTensorImpl());
    if (bag && bag->options.sparse()) found.insert(bag->weight.unsafeGetTensorImpl());
  };
  add(module);
  for (const auto& layer : module.modules(/*include_self=*/false)) add(*layer);
  return found;
}

Bytes bytes_of(const Tensor& gradients) {
  const bool is_sparse = gradients.is_sparse();
  return static_cast<Bytes>((is_sparse ? gradients._values().numel() : gradients.numel()) * gradients.element_size());
}

struct Traffic {
  ProcessGroup group;
  std::atomic<int64_t> buckets{0}, bytes{0};
};

/// Averages over ranks, as the reducer's own hook, with an explanation of errors.
class MeanOverRanks final : public c10d::CppCommHookInterface<std::shared_ptr<Traffic>> {
 public:
  using CppCommHookInterface::CppCommHookInterface;
  c10::intrusive_ptr<c10::ivalue::Future> runHook(c10d::GradBucket& bucket) override {
    const auto explain = [rank = state_->group.rank(), size = state_->group.size()](const std::exception& cause) {
      return lost_rank("[refrain::DataParallel] averaging gradients", rank, size, cause);
    };
    auto& gradients = bucket.getBufferRef();
    gradients.div_(state_->group.size());
    ++state_->buckets;
    state_->bytes += bytes_of(gradients);
    std::vector<Tensor> tensors{gradients};
    try {
      const auto reduced = state_->group.c10d()->allreduce(tensors)->getFuture();
      const auto check = [explain](c10::ivalue::Future& done) {
        try {
          done.waitAndThrow();
        } catch (const std::exception& cause) {
          throw explain(cause);
        }
        return done.value();
      };
      return reduced->then(check, reduced->elementType());
    } catch (const std::exception& cause) {
      throw explain(cause);
    }
  }
};

/// Keeps the layout of its construction, if requested.
class Reducer final : public c10d::Reducer {
 public:
  using c10d::Reducer::Reducer;
  void keep_layout() { has_rebuilt_bucket_ = true; }
};

/// Makes one node of all outputs: those that the loss does not use get an undefined gradient instead of none, so that
/// the reducer is called for the parameters behind them.
struct Tie : torch::autograd::Function<Tie> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, at::TensorList outputs) {
    context->set_materialize_grads(false);
    torch::autograd::variable_list copies;
    for (const auto& output : outputs) copies.push_back(output.clone());
    return copies;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                 torch::autograd::variable_list gradients) {
    return gradients;
  }
};

void check(const DataParallelOptions& options) {
  const std::pair<const char*, Bytes> caps[] = {{"bucket_cap", options.bucket_cap()},
                                                {"first_bucket_cap", options.first_bucket_cap()}};
  for (const auto& [name, bytes] : caps) {
    if (bytes < 1)
      throw InvalidArgument(fmt::format("[refrain::DataParallel] {} {}: expected 1 byte or more.", name, bytes));
  }
}

}  // namespace

struct GradientReduction::State {
  State(Module& model, const ProcessGroup& process_group, const DataParallelOptions& how)
      : module(model), options(how), traffic(std::make_shared<Traffic>(process_group)) {}

  void check_agreement() const;
  void make_reducer();
  void broadcast(const std::vector<Tensor>& tensors) const;
  [[noreturn]] void explain_unfinished(const c10::Error& error) const;

  Module& module;
  const DataParallelOptions options;
  const std::shared_ptr<Traffic> traffic;
  std::vector<Tensor> parameters, buffers;
  std::unordered_map<c10::TensorImpl*, std::string> names;
  std::shared_ptr<Reducer> reducer;
  std::shared_ptr<c10d::Logger> logger;
  bool sync = true;
  bool starts_step = true;  ///< the last forward's gradients were reduced, so the next is the first of a step
  bool saw_static = false;  ///< a step of a static graph has begun
  int64_t rebuilds = 0;
};

void GradientReduction::State::check_agreement() const {
  const std::string difference = first_difference(traffic->group.all_gather(describe(module, options)));
  if (difference.empty()) return;
  throw DistributedError(
      fmt::format("[refrain::DataParallel] the ranks' models differ: {}. Expected the same model and options on all of "
                  "them.",
                  difference));
}

void GradientReduction::State::broadcast(const std::vector<Tensor>& tensors) const {
  if (tensors.empty()) return;
  const at::NoGradGuard no_grad;
  std::vector<Tensor> plain;
  for (const auto& tensor : tensors) plain.push_back(tensor.detach());
  try {
    c10d::broadcast_coalesced(traffic->group.c10d(), plain, kBroadcastBytes, 0);
  } catch (const std::exception& error) {
    throw lost_rank("[refrain::DataParallel] broadcasting", traffic->group.rank(), traffic->group.size(), error);
  }
}

void GradientReduction::State::make_reducer() {
  const auto sparse = parameters_with_sparse_gradient(module);
  std::vector<bool> expect_sparse;
  for (const auto& parameter : parameters) expect_sparse.push_back(sparse.contains(parameter.unsafeGetTensorImpl()));
  const auto first = static_cast<size_t>(options.first_bucket_cap());
  const auto others = static_cast<size_t>(options.bucket_cap());
  auto layout = std::get<0>(c10d::compute_bucket_assignment_by_size(parameters, {first, others}, expect_sparse));
  std::reverse(layout.begin(), layout.end());  // backward begins at the last parameters
  reducer = std::make_shared<Reducer>(
      parameters, layout, traffic->group.c10d(), expect_sparse, options.bucket_cap(), options.find_unused_parameters(),
      options.gradient_as_bucket_view(), std::unordered_map<size_t, std::string>(), options.first_bucket_cap(),
      /*skip_all_reduce_unused_params=*/false, /*use_python_reducer=*/false, std::vector<int64_t>());
  if (options.static_graph()) reducer->set_static_graph();
  if (!options.rebuild_buckets()) reducer->keep_layout();
  logger = std::make_shared<c10d::Logger>(reducer);  // the reducer calls it, unchecked, for unused parameters
  reducer->set_logger(logger);
  reducer->register_comm_hook(std::make_unique<MeanOverRanks>(traffic));
}

void GradientReduction::State::explain_unfinished(const c10::Error& error) const {
  // the reducer names them by number, and in its message only
  const std::string text = error.msg(), intro = "did not receive grad for rank ";
  const size_t found = text.find(intro);
  if (found == std::string::npos) throw error;
  std::istringstream rest(text.substr(text.find(':', found) + 1));
  std::vector<std::string> missing;
  for (size_t index = 0; rest >> index && index < parameters.size();) {
    missing.push_back(names.at(parameters[index].unsafeGetTensorImpl()));
  }
  throw InvalidArgument(fmt::format(
      "[refrain::DataParallel] the last backward on rank {} of {} gave no gradient to: {}. The loss must depend on "
      "every parameter through outputs of this object; else set find_unused_parameters(true).",
      traffic->group.rank(), traffic->group.size(), fmt::join(missing, ", ")));
}

GradientReduction::GradientReduction(Module& module, const ProcessGroup& group, const DataParallelOptions& options)
    : state_(std::make_unique<State>(module, group, options)) {
  check(options);
  for (const auto& item : module.named_parameters()) {
    state_->names.emplace(item.value().unsafeGetTensorImpl(), item.key());
    if (item.value().requires_grad()) state_->parameters.push_back(item.value());
  }
  state_->parameters = unique(state_->parameters);
  state_->buffers = unique(module.buffers());
  state_->check_agreement();
  if (state_->parameters.empty()) {
    throw InvalidArgument(fmt::format(
        "[refrain::DataParallel] no parameter of {} requires a gradient: expected one at least.", module.name()));
  }
  state_->broadcast(unique(module.parameters()));
  state_->broadcast(state_->buffers);
  state_->make_reducer();
}

GradientReduction::~GradientReduction() = default;

bool GradientReduction::before_forward() {
  // a rerun in backward is the same forward
  if (!at::GradMode::is_enabled() || is_recomputing()) return false;
  const tape::UntracedScope untraced;
  auto& state = *state_;
  try {
    if (state.sync) state.reducer->prepare_for_forward();
    if (state.reducer->rebuild_buckets()) ++state.rebuilds;
  } catch (const c10::Error& error) {
    state.explain_unfinished(error);
  }
  if (state.starts_step && state.options.broadcast_buffers()) state.broadcast(state.buffers);
  state.starts_step = state.sync;
  return state.sync;
}

void GradientReduction::after_forward(const std::vector<Tensor*>& outputs) {
  const tape::UntracedScope untraced;
  auto& state = *state_;
  const bool first_static = state.options.static_graph() && !std::exchange(state.saw_static, true);
  const bool finds_unused = state.options.find_unused_parameters() && !state.options.static_graph();
  if (!first_static && !finds_unused) {
    state.reducer->prepare_for_backward({});
    return;
  }
  std::vector<Tensor*> differentiable;
  torch::autograd::variable_list ends;
  for (auto* output : outputs) {
    if (!output->defined() || !output->requires_grad()) continue;
    differentiable.push_back(output);
    ends.push_back(*output);
  }
  state.reducer->prepare_for_backward(finds_unused ? ends : std::vector<Tensor>());
  if (ends.empty()) return;
  const auto tied = Tie::apply(at::TensorList(ends));
  const auto reduces_at_end = std::make_shared<bool>(false);
  for (size_t i = 0; i < tied.size(); ++i) {
    *differentiable[i] = tied[i];
    if (!first_static) continue;
    tied[i].register_hook([reducer = state.reducer, reduces_at_end](const Tensor&) {
      if (!std::exchange(*reduces_at_end, true)) tape::after_backward([reducer] { reducer->delay_all_reduce(); });
    });
  }
}

bool GradientReduction::set_sync(bool on) { return std::exchange(state_->sync, on); }

DataParallelStats GradientReduction::stats() const {
  return {.buckets = state_->traffic->buckets, .bytes = state_->traffic->bytes, .rebuilds = state_->rebuilds};
}

}  // namespace refrain::detail
