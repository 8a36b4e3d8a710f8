#pragma once

#include <ATen/core/stack.h>

#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "refrain/explain.h"
#include "tape/op_watch.h"
#include "tape/slots.h"

namespace refrain::tape {

/// Facts about a tensor when autograd saved it.
struct Origin {
  uint64_t order = 0;      ///< in which tensors were saved
  std::string op;          ///< "MmBackward0"; "" without history
  bool parameter = false;  ///< a leaf that requires a gradient, or a view of one
  c10::weak_intrusive_ptr<c10::TensorImpl> leaf{c10::intrusive_ptr<c10::TensorImpl>()};  ///< that leaf, if `parameter`
};

/// A tensor saved outside every region, kept as it is.
struct PlainSave {
  at::Tensor tensor;  ///< without history
  c10::VariableVersion counter;
  uint32_t version = 0;
  Origin origin;
};

/// Observes what one thread saves while a `saved_tensors` runs on it. That thread only; no lock unless stated.
class Observer final : public SavedObserver {
 public:
  ~Observer();

  void opened(Region* region) override;
  void packed(const Slot* slot, const at::Tensor& tensor) override { slots_[slot] = origin_of(tensor); }
  void ran_effect(const OpTraits& traits, const torch::jit::Stack& results) override;
  /// Makes hooks that keep a tensor as autograd would and let this observer see it.
  std::unique_ptr<torch::autograd::SavedVariableHooks> hooks() override;

  SavedReport report();  ///< takes the tape's lock

 private:
  friend class PlainSlot;
  friend class ReportWriter;

  Origin origin_of(const at::Tensor& tensor);

  uint64_t next_order_ = 0;
  std::vector<Region*> regions_;                   ///< owned; in order of opening
  std::unordered_map<const Slot*, Origin> slots_;  ///< may contain dead ones: only looked up
  std::vector<std::weak_ptr<const PlainSave>> plain_;
  /// Results of operators with effects; the weak pointer keeps the address from being reused.
  std::unordered_map<c10::StorageImpl*, std::pair<c10::weak_intrusive_ptr<c10::StorageImpl>, const OpTraits*>> effects_;
};

}  // namespace refrain::tape
