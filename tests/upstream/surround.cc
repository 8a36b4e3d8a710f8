// The main program of LibTorch's own tests: opens a scope of the library's around each of them. See `run`.
#include <gtest/gtest.h>
#include <torch/cuda.h>

#include <cstdlib>
#include <memory>
#include <optional>
#include <string>

#include "evict/cap_state.h"
#include "evict/rest.h"
#include "evict/room_maker.h"
#include "refrain/checkpoint.h"
#include "refrain/memory.h"
#include "refrain/memory_budget.h"
#include "refrain/memory_cap.h"
#include "refrain/offload.h"
#include "tape/thread_state.h"

namespace {

struct Scope {
  virtual ~Scope() = default;
};

struct RegionScope : Scope {
  refrain::detail::RegionScope region{refrain::CheckpointOptions()};
};

struct TortureScope : Scope {
  TortureScope() {
    refrain::tape::set_before_operator([] { refrain::budget::RoomMaker::get().evict_all(); });
  }
  ~TortureScope() override { refrain::tape::set_before_operator(nullptr); }
  refrain::MemoryCap cap{refrain::Bytes{1} << 40, refrain::MemoryCapOptions().min_bytes(1)};
};

struct BudgetScope : Scope {
  refrain::MemoryBudget budget{refrain::Budget::fraction(0.5)};
};

struct OffloadedScope : Scope {
  refrain::OffloadScope scope{
      refrain::OffloadStore(refrain::OffloadOptions().store(refrain::OffloadTo::kDisk).min_bytes(0))};
};

std::unique_ptr<Scope> make_scope(const std::string& mode) {
  if (mode == "region") return std::make_unique<RegionScope>();
  if (mode == "torture") return std::make_unique<TortureScope>();
  if (mode == "budget") return std::make_unique<BudgetScope>();
  if (mode == "offload") return std::make_unique<OffloadedScope>();
  return nullptr;
}

class Surround : public testing::EmptyTestEventListener {
 public:
  explicit Surround(std::string mode) : mode_(std::move(mode)) {}
  void OnTestStart(const testing::TestInfo&) override { scope_ = make_scope(mode_); }
  void OnTestEnd(const testing::TestInfo&) override {
    try {
      scope_.reset();
    } catch (const std::exception& error) {
      ADD_FAILURE() << "the scope around the test throws at its end: " << error.what();
    }
  }

 private:
  const std::string mode_;
  std::unique_ptr<Scope> scope_;
};

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const char* mode = std::getenv("REFRAIN_UPSTREAM_MODE");
  if (mode == nullptr || std::string(mode) != "none") refrain::install_memory_tracking();
  auto filter = testing::GTEST_FLAG(filter);
  if (!torch::cuda::is_available())
    testing::GTEST_FLAG(filter) = filter + (filter.find('-') == std::string::npos ? "-" : ":") + "*_CUDA:*_MultiCUDA";
  testing::UnitTest::GetInstance()->listeners().Append(new Surround(mode == nullptr ? "none" : mode));
  return RUN_ALL_TESTS();
}
