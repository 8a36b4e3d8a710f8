#pragma once

#include "tape/region_inputs.h"

namespace refrain::tape {

/// What an `OffloadScope` puts on its thread: whatever autograd saves goes into a store.
class OffloadingSaver final : public Saver {
 public:
  explicit OffloadingSaver(std::shared_ptr<OffloadStore> store);
  ~OffloadingSaver();
  OffloadingSaver(const OffloadingSaver&) = delete;
  OffloadingSaver& operator=(const OffloadingSaver&) = delete;

  std::unique_ptr<torch::autograd::SavedVariableHooks> hooks() override;

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
  Saver* before_ = nullptr;
  bool is_on_ = false;
};

}  // namespace refrain::tape
