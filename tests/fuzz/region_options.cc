#include "region_options.h"

#include <iterator>
#include <vector>

#include "intercept/storage_copy.h"
#include "machine.h"
#include "offload/region_inputs.h"
#include "refrain/selective.h"

namespace refrain::fuzz {
namespace {

/// Copies region inputs, but for some.
class CopiedInputs final : public RegionInputs {
 public:
  explicit CopiedInputs(bool by_all_ranks) : by_all_ranks_(by_all_ranks) {}
  std::shared_ptr<tape::RegionWork> open(const CheckpointOptions&) override {
    return std::make_shared<Work>(by_all_ranks_);
  }

 private:
  struct Copy final : tape::Offloaded {
    Copy(c10::Storage b, bool all) : bytes(std::move(b)), by_all_ranks(all) {}
    c10::Storage fetch() override {
      ++coverage().inputs_fetched;
      return tape::clone_storage(bytes);
    }
    bool needs_all_ranks() const override { return by_all_ranks; }
    c10::Storage bytes;
    bool by_all_ranks;
  };
  struct Work final : tape::RegionWork {
    explicit Work(bool all) : by_all_ranks(all) {}
    void add_input(size_t) override {}
    std::shared_ptr<tape::Offloaded> store(const c10::Storage& bytes) override {
      if (bytes.nbytes() % 3 == 1) return nullptr;
      ++coverage().inputs_stored;
      return std::make_shared<Copy>(tape::clone_storage(bytes), by_all_ranks);
    }
    void forward_ended() noexcept override {}
    void recompute_started() override {}
    void recompute_ended() noexcept override {}
    bool by_all_ranks;
  };

  bool by_all_ranks_;
};

constexpr CheckpointPolicy kAnswers[] = {CheckpointPolicy::kMustSave, CheckpointPolicy::kPreferSave,
                                         CheckpointPolicy::kMustRecompute, CheckpointPolicy::kPreferRecompute,
                                         CheckpointPolicy::kOffload};

/// Any answer for any operator.
Policy dice(uint64_t seed) {
  return [seed](const OpContext& op) {
    return kAnswers[mix(seed, static_cast<uint64_t>(op.position())) % std::size(kAnswers)];
  };
}

/// Looks at everything that a policy may look at.
Policy save_small(uint64_t seed) {
  return [seed](const OpContext& op) {
    int64_t bytes = op.output_bytes();
    for (const TensorInfo& input : op.inputs()) bytes += input.bytes();
    for (const TensorInfo& output : op.outputs()) bytes += output.bytes() + static_cast<int64_t>(output.sizes.size());
    bytes += op.random() ? 64 : op.count(op.name());
    return bytes < static_cast<int64_t>(40 + seed % 400) ? CheckpointPolicy::kPreferSave
                                                         : CheckpointPolicy::kPreferRecompute;
  };
}

struct NamedPolicy {
  const char* name;
  Policy (*make)(uint64_t seed);
};

const std::vector<NamedPolicy>& policies() {
  static const std::vector<NamedPolicy> table = {
      {"dice", dice},
      {"save_small", save_small},
      {"save_matmuls", [](uint64_t) { return save_matmuls(); }},
      {"save_compute_intensive", [](uint64_t) { return save_compute_intensive(); }},
      {"save_every_second_matmul", [](uint64_t) { return save_every_second_matmul(); }},
      {"everything_saveable", [](uint64_t) { return everything_saveable(); }},
      {"nothing_saveable", [](uint64_t) { return nothing_saveable(); }},
      {"save_random", [](uint64_t) { return save_random(); }},
      {"save_ops(mul, tanh, copy_)",
       [](uint64_t) {
         return save_ops({"aten::mul", "aten::tanh", "aten::copy_", "aten::mul_.Tensor"});
       }},
      {"offload_ops(mm, sigmoid)",
       [](uint64_t) {
         return offload_ops({"aten::mm", "aten::sigmoid"});
       }},
      {"save_only_these_names(a, b)",
       [](uint64_t) {
         return save_only_these_names({"a", "b"});
       }},
      {"save_any_names_but_these(a)", [](uint64_t) { return save_any_names_but_these({"a"}); }}};
  return table;
}

Policy make_policy(const RegionOptions::PolicyChoice& choice) {
  Policy policy = policies()[static_cast<size_t>(choice.first)].make(choice.seed);
  if (choice.second >= 0) {
    policy = and_then(std::move(policy), policies()[static_cast<size_t>(choice.second)].make(mix(choice.seed, 1)));
  }
  if (choice.scoped) policy = by_module({{"odd", std::move(policy)}});
  return [policy](const OpContext& op) {
    const CheckpointPolicy answer = policy(op);
    ++coverage().answers[static_cast<int>(answer)];
    return answer;
  };
}

std::string to_text(const RegionOptions::PolicyChoice& choice) {
  const auto name = [&](int index, uint64_t seed) {
    const std::string plain = policies()[static_cast<size_t>(index)].name;
    return index < 2 ? plain + "(" + std::to_string(seed) + ")" : plain;
  };
  std::string text = name(choice.first, choice.seed);
  if (choice.second >= 0) text = "and_then(" + text + ", " + name(choice.second, mix(choice.seed, 1)) + ")";
  return choice.scoped ? "by_module({odd, " + text + "})" : text;
}

}  // namespace

RegionOptions::PolicyChoice random_policy(Rng& rng) {
  const auto count = static_cast<int64_t>(policies().size());
  RegionOptions::PolicyChoice choice;
  choice.first = rng.chance(0.3) ? 0 : static_cast<int>(rng.below(count));
  if (rng.chance(0.2)) choice.second = static_cast<int>(rng.below(count));
  choice.scoped = rng.chance(0.1);
  choice.seed = rng.next();
  return choice;
}

RegionOptions random_options(Rng& rng, bool in_rerun) {
  RegionOptions options;
  options.rerun = rng.chance(0.22);
  if (options.rerun) {
    options.strict = !rng.chance(0.15);
    options.early_stop = !rng.chance(0.15);
    options.debug = rng.chance(0.1);
  } else if (rng.chance(in_rerun ? 0.5 : 0.35)) {
    options.policy = random_policy(rng);
  }
  Rng apart(mix(Rng(rng).next(), 0xA9A87));  // the rest of a seed's program is the same with and without
  if (apart.chance(0.3)) options.inputs = apart.chance(0.5) ? RegionOptions::kStored : RegionOptions::kByAllRanks;
  options.is_noexcept = options.rerun && apart.chance(0.1);
  return options;
}

CheckpointOptions to_checkpoint_options(const RegionOptions& options) {
  CheckpointOptions made;
  if (options.has_policy()) made.policy(make_policy(options.policy));
  if (options.inputs != RegionOptions::kInMemory)
    made.input_storage(std::make_shared<CopiedInputs>(options.inputs == RegionOptions::kByAllRanks));
  if (!options.rerun) return made;
  return made.recompute_mode(RecomputeMode::kRerunFunction)
      .determinism_check(options.strict ? DeterminismCheck::kStrict : DeterminismCheck::kDefault)
      .early_stop(options.early_stop)
      .debug(options.debug);
}

std::string to_text(const RegionOptions& options) {
  std::string text;
  if (options.has_policy()) text += ", policy=" + to_text(options.policy);
  if (options.inputs == RegionOptions::kStored) text += ", inputs stored";
  if (options.inputs == RegionOptions::kByAllRanks) text += ", inputs stored by all ranks";
  if (options.rerun) text += ", rerun";
  if (options.rerun && options.strict) text += ", strict";
  if (options.rerun && !options.early_stop) text += ", no early stop";
  if (options.rerun && options.debug) text += ", debug";
  if (options.is_noexcept) text += ", noexcept";
  return text.empty() ? text : "(" + text.substr(2) + ")";
}

}  // namespace refrain::fuzz
