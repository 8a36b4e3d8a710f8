#include <array>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "capi/errors.h"
#include "capi/handles.h"
#include "refrain/error.h"
#include "refrain/selective.h"

using namespace refrain;

struct refrain_op_t {
  explicit refrain_op_t(const OpContext& given) : op(given) {}

  const OpContext& op;
  // what C reads needs an end, and someone who owns it
  mutable std::array<std::optional<std::string>, 4> texts{};
  mutable std::array<std::optional<std::vector<TensorInfo>>, 2> tensors{};

  const char* text(size_t index, std::string_view value) const {
    if (!texts[index]) texts[index] = std::string(value);
    return texts[index]->c_str();
  }
  const std::vector<TensorInfo>& tensors_of(int32_t of) const {
    auto& found = tensors[of == 0 ? 0 : 1];
    if (!found) found = of == 0 ? op.inputs() : op.outputs();
    return *found;
  }
};

namespace {

Policy named(std::string_view name) {
  const std::pair<std::string_view, Policy (*)()> known[] = {
      {"save_matmuls", &save_matmuls},
      {"save_compute_intensive", &save_compute_intensive},
      {"save_random", &save_random},
      {"dots_saveable", &dots_saveable},
      {"nothing_saveable", &nothing_saveable},
      {"everything_saveable", &everything_saveable},
      {"save_every_second_matmul", &save_every_second_matmul},
      {"offload_compute_intensive", &offload_compute_intensive},
  };
  std::string names;
  for (const auto& [known_name, make] : known) {
    if (known_name == name) return make();
    names += (names.empty() ? "" : ", ") + std::string(known_name);
  }
  throw InvalidArgument("[refrain_policy_named] found `" + std::string(name) + "`, expected one of " + names);
}

Policy of_names(std::string_view kind, const std::vector<std::string>& names) {
  if (kind == "save_ops") return save_ops(names);
  if (kind == "offload_ops") return offload_ops(names);
  if (kind == "save_only_these_names") return save_only_these_names(names);
  if (kind == "save_any_names_but_these") return save_any_names_but_these(names);
  if (kind == "offload_only_these_names") return offload_only_these_names(names);
  throw InvalidArgument("[refrain_policy_of_names] found `" + std::string(kind) +
                        "`, expected save_ops, offload_ops, save_only_these_names, save_any_names_but_these or "
                        "offload_only_these_names");
}

Policy callback(int32_t (*decide)(void*, const refrain_op_t*), std::shared_ptr<void> context) {
  return [decide, context = std::move(context)](const OpContext& op) {
    const refrain_op_t asked(op);
    const auto answer = decide(context.get(), &asked);
    if (answer < 0) throw capi::CallbackFailed("[refrain::checkpoint] the policy failed");
    if (answer > static_cast<int32_t>(CheckpointPolicy::kOffload))
      throw InvalidArgument("[refrain::checkpoint] the policy answered " + std::to_string(answer) +
                            ", expected a CheckpointPolicy, 0 to 4");
    return static_cast<CheckpointPolicy>(answer);
  };
}

refrain_policy_t* handle(Policy policy) { return new refrain_policy_t{std::move(policy)}; }

}  // namespace

refrain_policy_t* refrain_policy_named(const char* name) {
  return capi::made([&] {
    capi::require(name, "refrain_policy_named", "name");
    return handle(named(name));
  });
}

refrain_policy_t* refrain_policy_of_names(const char* kind, const char* const* names, size_t count) {
  return capi::made([&] {
    capi::require(kind, "refrain_policy_of_names", "kind");
    std::vector<std::string> list;
    for (size_t i = 0; i < count; ++i) {
      capi::require(names[i], "refrain_policy_of_names", "names");
      list.emplace_back(names[i]);
    }
    return handle(of_names(kind, list));
  });
}

refrain_policy_t* refrain_policy_offload_larger_than(int64_t bytes) {
  return capi::made([&] { return handle(offload_larger_than(bytes)); });
}

refrain_policy_t* refrain_policy_and_then(const refrain_policy_t* first, const refrain_policy_t* second) {
  return capi::made([&] {
    capi::require(first, "refrain_policy_and_then", "first");
    capi::require(second, "refrain_policy_and_then", "second");
    return handle(and_then(first->policy, second->policy));
  });
}

refrain_policy_t* refrain_policy_callback(int32_t (*decide)(void*, const refrain_op_t*), void* context,
                                          void (*release)(void*)) {
  return capi::made([&] {
    auto held = release ? std::shared_ptr<void>(context, release) : std::shared_ptr<void>(context, [](void*) {});
    if (!decide) throw InvalidArgument("[refrain_policy_callback] `decide` is null, expected a function");
    return handle(callback(decide, std::move(held)));
  });
}

void refrain_policy_close(refrain_policy_t* policy) { delete policy; }

const char* refrain_op_name(const refrain_op_t* op) { return op->text(0, op->op.name()); }
const char* refrain_op_overload(const refrain_op_t* op) { return op->text(1, op->op.overload()); }
const char* refrain_op_scope(const refrain_op_t* op) { return op->text(2, op->op.scope()); }
const char* refrain_op_checkpoint_name(const refrain_op_t* op) { return op->text(3, op->op.checkpoint_name()); }
int32_t refrain_op_is_random(const refrain_op_t* op) { return op->op.random() ? 1 : 0; }
int64_t refrain_op_position(const refrain_op_t* op) { return op->op.position(); }
int64_t refrain_op_count(const refrain_op_t* op, const char* key) { return op->op.count(key); }
int64_t refrain_op_output_bytes(const refrain_op_t* op) { return op->op.output_bytes(); }
size_t refrain_op_tensors(const refrain_op_t* op, int32_t of) { return op->tensors_of(of).size(); }

void refrain_op_tensor(const refrain_op_t* op, int32_t of, size_t index, const int64_t** sizes, size_t* dimensions,
                       int32_t* dtype, int32_t* device) {
  const auto& tensor = op->tensors_of(of)[index];
  *sizes = tensor.sizes.data();
  *dimensions = tensor.sizes.size();
  *dtype = static_cast<int32_t>(tensor.dtype);
  *device = static_cast<int32_t>(tensor.device.type());
}
