#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/SmallVector.h>

#include <cstdint>
#include <string>

#include "intercept/ambient.h"

namespace refrain::tape {

/// What a replay passes for an argument that the operator writes.
enum class ReplayArg : uint8_t {
  kBytes,      ///< the old bytes: the result depends on them
  kWriteOnly,  ///< uninitialised memory: the operator writes all of it and reads none
  kScratch,    ///< uninitialised memory: statistics that must move once, where the schema wants a tensor
  kUndefined,  ///< an undefined tensor: statistics that must move once
};

/// An argument that the operator writes.
struct WriteTrait {
  uint16_t arg;  ///< position in the schema
  ReplayArg replay = ReplayArg::kBytes;
  int16_t only_if_true = -1;  ///< position of a bool argument that must be true for the write to happen; -1: always
};

/// Traits of an operator overload, computed once from its schema, its tags and the tables.
struct OpTraits {
  c10::OperatorHandle handle;
  std::string qualified_name;  ///< "aten::add"
  std::string overload_name;   ///< "Tensor"
  uint16_t num_args = 0;
  uint16_t num_returns = 0;
  c10::SmallVector<WriteTrait, 3> writes;
  c10::SmallVector<uint16_t, 3> tensor_lists;  ///< positions of arguments that take lists of tensors, ascending
  bool moves_once = false;         ///< among `writes` are statistics that a replay must not update a second time
  bool view_only = false;          ///< every return is a non-written alias, or only metadata changes: nothing to record
  bool metadata_in_place = false;  ///< changes the shape of argument 0 in place: bumps its version, writes no bytes
  bool pure_inplace = false;       ///< every return aliases a written argument: no new storage
  bool random = false;             ///< tagged as drawing from a generator
  bool maybe_random = false;       ///< not from LibTorch, so it may draw without the tag: compared around the call
  bool effect = false;             ///< runs once, outputs kept
  bool collective = false;         ///< other threads read and write its arguments, also after it has returned
  bool uninitialized = false;      ///< outputs are raw memory (`empty` and kin)
  bool only_metadata = false;      ///< reads the shape of argument 0 and none of its bytes
  bool full_overwrite = false;     ///< writes argument 0 everywhere without reading it
  ReadsPrecision precision = ReadsPrecision::kMatmul;  ///< `kNone` if tagged as elementwise: multiplies no matrices
  bool cast = false;         ///< `_to_copy`: cheap to recompute from a leaf, never worth pinning
  bool opaque_args = false;  ///< takes containers of tensors that the tape does not unpack: treated as `effect`

  explicit OpTraits(const c10::OperatorHandle& op);
  std::string name() const;
  bool may_draw() const { return random || maybe_random; }
  bool is_tensor_list(size_t arg) const {
    for (const size_t list : tensor_lists)
      if (list == arg) return true;
    return false;
  }
};

/// Looks up the cached traits of `op`. Threads: any; thread-local cache in front of a shared table. Cost: a few ns when
/// hot.
const OpTraits& op_traits(const c10::OperatorHandle& op);

/// Finds how a call with these arguments writes argument `arg`; null if it does not.
inline const WriteTrait* write_trait(const OpTraits& traits, size_t arg, const c10::IValue* args) {
  for (const auto& write : traits.writes) {
    if (write.arg != arg) continue;
    if (write.only_if_true >= 0 && !args[write.only_if_true].toBool()) return nullptr;
    return &write;
  }
  return nullptr;
}

/// Implements `refrain::register_side_effect_op`.
void mark_effect_op(const std::string& qualified_name);

}  // namespace refrain::tape
