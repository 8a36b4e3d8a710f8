#include "capi/handles.h"

#include <string>

#include "capi/errors.h"
#include "refrain/error.h"

namespace refrain::capi {

at::Tensor tensor_of(void* impl, const char* function) {
  require(impl, function, "tensor");
  return at::Tensor(
      c10::intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>::reclaim_copy(static_cast<c10::TensorImpl*>(impl)));
}

std::vector<at::Tensor> tensors_of(void* const* impls, size_t count, const char* function) {
  if (count > 0) require(impls, function, "tensors");
  std::vector<at::Tensor> tensors;
  tensors.reserve(count);
  for (size_t i = 0; i < count; ++i) tensors.push_back(tensor_of(impls[i], function));
  return tensors;
}

Budget budget_of(const refrain_budget_t* budget, const char* function) {
  require(budget, function, "budget");
  switch (budget->kind) {
    case 0:
      return Budget::bytes(budget->bytes);
    case 1:
      return Budget::fraction(budget->part);
    case 2:
      return Budget::process(budget->bytes);
    case 3:
      return Budget::available(budget->part);
    default:
      throw InvalidArgument(std::string("[") + function + "] `kind` of the budget is " + std::to_string(budget->kind) +
                            ", expected 0 to 3");
  }
}

MemoryCapOptions cap_options_of(const refrain_memory_cap_options_t* options) {
  MemoryCapOptions made;
  if (!options) return made;
  if (options->heuristic < 0 || options->heuristic > 3)
    throw InvalidArgument("[refrain::MemoryCap] `heuristic` is " + std::to_string(options->heuristic) +
                          ", expected 0 to 3");
  return made.heuristic(static_cast<EvictionHeuristic>(options->heuristic))
      .min_bytes(options->min_bytes)
      .max_overhead(options->max_overhead)
      .always_record(options->always_record != 0);
}

}  // namespace refrain::capi
