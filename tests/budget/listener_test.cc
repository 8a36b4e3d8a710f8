#include <gtest/gtest.h>

#include <barrier>
#include <memory>
#include <thread>
#include <vector>

#include "refrain/error.h"
#include "tape/step_listener.h"

/// One listener in the process, on one thread.
namespace refrain_test {
namespace {

using refrain::tape::ListenerScope;
using refrain::tape::step_listener;

class Deaf final : public refrain::tape::StepListener {
 public:
  void before(const refrain::tape::OpTraits&, const torch::jit::Stack&) override {}
  void begins(refrain::tape::TapeLock&, const refrain::tape::OpTraits&, c10::ArrayRef<refrain::tape::Value*>) override {
  }
  void recorded(refrain::tape::TapeLock&, const refrain::tape::Op&) override {}
  void ends(refrain::tape::TapeLock&) override {}
  void step_ended() override {}
};

TEST(StepListener, IsOfTheThreadThatSetIt) {
  Deaf deaf;
  EXPECT_EQ(step_listener(), nullptr);
  {
    const ListenerScope scope(deaf);
    EXPECT_EQ(step_listener(), &deaf);
    std::thread([] { EXPECT_EQ(step_listener(), nullptr); }).join();
    EXPECT_THROW(ListenerScope another(deaf), refrain::InvalidArgument);
    EXPECT_EQ(step_listener(), &deaf);
  }
  EXPECT_EQ(step_listener(), nullptr);
}

TEST(StepListener, AThreadThatHadOneDoesNotHearTheNext) {
  std::barrier both(2);
  std::thread other([&] {
    Deaf mine;
    { const ListenerScope scope(mine); }
    both.arrive_and_wait();
    both.arrive_and_wait();
    EXPECT_EQ(step_listener(), nullptr);
    both.arrive_and_wait();
  });
  both.arrive_and_wait();
  Deaf deaf;
  const ListenerScope scope(deaf);
  both.arrive_and_wait();
  both.arrive_and_wait();
  other.join();
  EXPECT_EQ(step_listener(), &deaf);
}

TEST(StepListener, OfTwoThreadsThatSetOneAtOnceOneDoes) {
  constexpr int kTimes = 2000;
  std::atomic<int> arrived{0}, won{0};
  // both run on at the same moment, as nearly as two threads can
  const auto meet = [&](int number) {
    ++arrived;
    while (arrived < 2 * number) std::this_thread::yield();
  };
  const auto race = [&] {
    Deaf deaf;
    for (int i = 0; i < kTimes; ++i) {
      meet(2 * i + 1);
      std::unique_ptr<ListenerScope> scope;
      try {
        scope = std::make_unique<ListenerScope>(deaf);
        ++won;
        EXPECT_EQ(step_listener(), &deaf);
      } catch (const refrain::InvalidArgument&) {
        EXPECT_EQ(step_listener(), nullptr);
      }
      meet(2 * i + 2);
    }
  };
  std::thread other(race);
  race();
  other.join();
  EXPECT_EQ(won, kTimes);
}

}  // namespace
}  // namespace refrain_test
