#include <algorithm>
#include <array>
#include <memory>
#include <unordered_set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/suggest.h"
#include "intercept/op_names.h"
#include "refrain/error.h"
#include "refrain/selective.h"

namespace refrain {
namespace {

// Looks up by the tape's own strings: no copy per operator.
struct Hash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};
using Names = std::unordered_set<std::string, Hash, std::equal_to<>>;

constexpr std::array kMatmuls{"aten::mm", "aten::addmm", "aten::bmm",    "aten::baddbmm",    "aten::addmv",
                              "aten::mv", "aten::dot",   "aten::addbmm", "aten::_scaled_mm", "aten::linear"};
constexpr std::array kOtherCompute{"aten::convolution",
                                   "aten::_convolution",
                                   "aten::mkldnn_convolution",
                                   "aten::cudnn_convolution",
                                   "aten::convolution_overrideable",
                                   "aten::upsample_bilinear2d",
                                   "aten::_scaled_dot_product_flash_attention",
                                   "aten::_scaled_dot_product_efficient_attention",
                                   "aten::_scaled_dot_product_cudnn_attention",
                                   "aten::_scaled_dot_product_flash_attention_for_cpu"};

bool in(std::string_view name, const auto& list) { return std::find(list.begin(), list.end(), name) != list.end(); }

CheckpointPolicy answer_if(bool condition, CheckpointPolicy answer) {
  return condition ? answer : CheckpointPolicy::kPreferRecompute;
}

CheckpointPolicy save_if(bool condition) { return answer_if(condition, CheckpointPolicy::kMustSave); }
CheckpointPolicy offload_if(bool condition) { return answer_if(condition, CheckpointPolicy::kOffload); }

bool matmul(std::string_view name) { return in(name, kMatmuls); }
bool compute_intensive(std::string_view name) { return matmul(name) || in(name, kOtherCompute); }

// Whether `path` is `prefix` or below it.
bool below(std::string_view path, std::string_view prefix) {
  return path.starts_with(prefix) && (path.size() == prefix.size() || prefix.empty() || path[prefix.size()] == '.');
}

// `answer` for these operators. @param caller for the message.
Policy answer_ops(const char* caller, const std::vector<std::string>& ops, CheckpointPolicy answer) {
  auto whole = std::make_shared<Names>(), overloads = std::make_shared<Names>();
  for (const auto& op : ops) {
    if (!tape::operator_exists(op))
      throw InvalidArgument(fmt::format(
          "[refrain::{}] found no operator `{}`. Expected \"namespace::name\" or \"namespace::name.overload\"{}. "
          "Register custom operators first.",
          caller, op, [&] {
            const auto close = nearest(op, tape::operator_names());
            return close.empty() ? std::string() : fmt::format("; near it: {}", fmt::join(close, ", "));
          }()));
    const auto dot = op.find('.', op.find("::"));
    (dot == std::string::npos ? whole : overloads)->insert(op);
  }
  return [whole, overloads, answer](const OpContext& op) {
    if (whole->find(op.name()) != whole->end()) return answer;
    if (overloads->empty()) return CheckpointPolicy::kPreferRecompute;
    const bool listed = overloads->find(fmt::format("{}.{}", op.name(), op.overload())) != overloads->end();
    return listed ? answer : CheckpointPolicy::kPreferRecompute;
  };
}

// `answer` for values with these names.
Policy answer_names(const std::vector<std::string>& names, CheckpointPolicy answer) {
  return [names = std::make_shared<Names>(names.begin(), names.end()), answer](const OpContext& op) {
    return answer_if(!op.checkpoint_name().empty() && names->find(op.checkpoint_name()) != names->end(), answer);
  };
}

}  // namespace

Policy save_ops(const std::vector<std::string>& ops) {
  return answer_ops("save_ops", ops, CheckpointPolicy::kMustSave);
}

Policy offload_ops(const std::vector<std::string>& ops) {
  return answer_ops("offload_ops", ops, CheckpointPolicy::kOffload);
}

Policy save_matmuls() {
  return [](const OpContext& op) { return save_if(matmul(op.name())); };
}

Policy save_compute_intensive() {
  return [](const OpContext& op) { return save_if(compute_intensive(op.name())); };
}

Policy dots_saveable() { return save_matmuls(); }

Policy nothing_saveable() {
  return [](const OpContext&) { return CheckpointPolicy::kPreferRecompute; };
}

Policy everything_saveable() {
  return [](const OpContext&) { return CheckpointPolicy::kMustSave; };
}

Policy save_every_second_matmul() {
  return [](const OpContext& op) { return save_if(matmul(op.name()) && op.count("matmul") % 2 == 0); };
}

Policy save_random() {
  return [](const OpContext& op) { return save_if(op.random()); };
}

Policy save_only_these_names(const std::vector<std::string>& names) {
  return answer_names(names, CheckpointPolicy::kMustSave);
}

Policy offload_only_these_names(const std::vector<std::string>& names) {
  return answer_names(names, CheckpointPolicy::kOffload);
}

Policy offload_compute_intensive() {
  return [](const OpContext& op) { return offload_if(compute_intensive(op.name())); };
}

Policy offload_larger_than(int64_t bytes) {
  if (bytes < 0)
    throw InvalidArgument(
        fmt::format("[refrain::offload_larger_than] found {}, expected a number of bytes >= 0.", bytes));
  return
      [bytes](const OpContext& op) { return offload_if(op.checkpoint_name().empty() && op.output_bytes() >= bytes); };
}

Policy save_any_names_but_these(const std::vector<std::string>& names) {
  return [names = std::make_shared<Names>(names.begin(), names.end())](const OpContext& op) {
    return save_if(!op.checkpoint_name().empty() && names->find(op.checkpoint_name()) == names->end());
  };
}

Policy and_then(Policy first, Policy second) {
  return [first = std::move(first), second = std::move(second)](const OpContext& op) {
    const auto answer = first(op);
    return answer == CheckpointPolicy::kPreferRecompute ? second(op) : answer;
  };
}

Policy by_module(std::vector<std::pair<std::string, Policy>> policies, Policy otherwise) {
  std::stable_sort(policies.begin(), policies.end(),
                   [](const auto& a, const auto& b) { return a.first.size() > b.first.size(); });
  return [policies = std::move(policies), otherwise = std::move(otherwise)](const OpContext& op) {
    for (const auto& [prefix, policy] : policies)
      if (below(op.scope(), prefix)) return policy(op);
    return otherwise(op);
  };
}

}  // namespace refrain
