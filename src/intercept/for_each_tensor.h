#pragma once

#include <ATen/core/ivalue.h>

#include <cstddef>
#include <cstdint>

namespace refrain::tape {

/// Calls `visit(tensor, position, element)` for each defined tensor among `count` arguments or results; `element` is
/// its position in a list, or -1. References to the tensor are valid as long as `values` is.
template <typename Visit>
void for_each_tensor(const c10::IValue* values, size_t count, Visit&& visit) {
  for (size_t i = 0; i < count; ++i) {
    const auto& value = values[i];
    if (value.isTensor()) {
      const auto& tensor = value.toTensor();
      if (tensor.defined()) visit(tensor, i, -1);
    } else if (value.isList()) {
      const auto list = value.toListRef();
      for (size_t j = 0; j < list.size(); ++j) {
        if (list[j].isInt() || list[j].isDouble()) break;  // a list of numbers
        if (list[j].isTensor() && list[j].toTensor().defined()) visit(list[j].toTensor(), i, static_cast<int32_t>(j));
      }
    }
  }
}

}  // namespace refrain::tape
