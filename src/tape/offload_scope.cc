#include "tape/offload_scope.h"

#include <torch/csrc/autograd/saved_variable_hooks.h>

#include "tape/engine.h"

namespace refrain::tape {

OffloadingSaver::OffloadingSaver(std::shared_ptr<OffloadStore> store) : work_(std::move(store)) {
  auto& thread = ThreadState::get();
  const bool in_rerun = thread.saver && !dynamic_cast<OffloadingSaver*>(thread.saver);
  if (thread.region || in_rerun) return;
  install();
  is_on_ = true;
  before_ = std::exchange(thread.saver, this);
}

OffloadingSaver::~OffloadingSaver() {
  if (is_on_) ThreadState::get().saver = before_;
}

std::unique_ptr<torch::autograd::SavedVariableHooks> OffloadingSaver::hooks() { return parking_hooks(work_); }

}  // namespace refrain::tape
