#include "offload/offload_scope.h"

#include <ATen/SequenceNumber.h>
#include <torch/csrc/autograd/saved_variable_hooks.h>

#include "intercept/key.h"
#include "intercept/saving.h"
#include "tape/engine.h"
#include "tape/thread_state.h"

namespace refrain::tape {

OffloadingSaver::OffloadingSaver(std::shared_ptr<OffloadStore> store) : work_(std::move(store)) {
  auto& thread = ThreadState::get();
  const bool in_rerun = thread.saver && thread.saver->is_rerun();
  if (thread.region || in_rerun) return;
  install();
  is_on_ = true;
  thread.opened({.owner = this, .saver = this});
  set_tape_included(true);
}

OffloadingSaver::~OffloadingSaver() {
  if (!is_on_) return;
  try {
    store_late();
  } catch (...) {
    // tensors that are not stored are kept
  }
  ThreadState::get().closed(this);
}

std::unique_ptr<torch::autograd::SavedVariableHooks> OffloadingSaver::hooks() { return parking_hooks(work_, this); }

void OffloadingSaver::packed(std::shared_ptr<Parked> parked, const at::Tensor& tensor) {
  auto& thread = ThreadState::get();
  const auto node = at::sequence_number::peek();
  const bool is_result = made_by_newest_node(tensor);
  begins();
  if (thread.offloads && (is_result || thread.offloads != this || node_ != node)) thread.offloads->store_late();
  if (is_result) return store_parked(*parked, work_);
  node_ = node;
  late_.push_back(std::move(parked));
  thread.offloads = this;
  // so that the tape sees the operator return
  set_tape_included(true);
}

void OffloadingSaver::returned(bool wrote) {
  if (wrote)
    is_due_ = true;
  else
    store_late();
}

void OffloadingSaver::store_late() {
  auto& thread = ThreadState::get();
  is_due_ = false;
  if (thread.offloads == this) thread.offloads = nullptr;
  for (const auto& parked : std::exchange(late_, {})) store_parked(*parked, work_);
}

}  // namespace refrain::tape
