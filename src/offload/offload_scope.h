#pragma once

#include "offload/region_inputs.h"
#include "tape/op_watch.h"

namespace refrain::tape {

/// Saver of an `OffloadScope` on its thread: tensors that autograd saves go into a store.
///
/// Not always at once. Autograd saves the arguments of an operator before it runs, and some operators write tensors
/// saved then: `rrelu` draws its noise. So arguments are stored when the operator has returned, at the latest when
/// autograd saves something of the next one or the scope ends. Those of an operator that wrote in place wait for the
/// next operator: autograd bumps the version of a written tensor only when the tape has seen the operator return, and
/// storing compares versions.
class OffloadingSaver final : public Saver, public LateSaver, public ParkingWatch {
 public:
  explicit OffloadingSaver(std::shared_ptr<OffloadStore> store);
  ~OffloadingSaver();
  OffloadingSaver(const OffloadingSaver&) = delete;
  OffloadingSaver& operator=(const OffloadingSaver&) = delete;

  std::unique_ptr<torch::autograd::SavedVariableHooks> hooks() override;
  void packed(std::shared_ptr<Parked> parked, const at::Tensor& tensor) override;
  void returned(bool wrote) override;
  void begins() override {
    if (is_due_) store_late();
  }
  void store_late() override;

 private:
  class Work final : public RegionWork {
   public:
    explicit Work(std::shared_ptr<OffloadStore> store) : store_(std::move(store)) {}
    void add_input(size_t) override {}
    std::shared_ptr<Offloaded> store(const c10::Storage& bytes) override { return store_->store(bytes); }
    void forward_ended() noexcept override {}
    void recompute_started() override {}
    void recompute_ended() noexcept override {}

   private:
    const std::shared_ptr<OffloadStore> store_;
  };

  Work work_;
  std::vector<std::shared_ptr<Parked>> late_;  ///< this thread's `offloads` is this while there are any
  uint64_t node_ = 0;                          ///< whose arguments they are
  bool is_due_ = false;                        ///< that operator has returned
  bool is_on_ = false;
};

}  // namespace refrain::tape
