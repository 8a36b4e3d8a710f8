#pragma once

#include <ATen/core/stack.h>
#include <c10/util/ArrayRef.h>

#include <atomic>
#include <cstdint>
#include <string_view>

namespace refrain::tape {

/// Returns the number of `text`, the same for the same text in this process; 0 for "". Never freed: for names, not for
/// data.
uint32_t intern(std::string_view text);
/// Returns the text of a number from `intern`; valid until the process ends.
std::string_view interned(uint32_t number);

/// What a thread is doing, as a label for the memory that it allocates.
struct Running {
  uint32_t op = 0;  ///< interned name of its outermost operator, "aten::linear"; in backward the node's, "MmBackward0"
  uint64_t call = 0;         ///< number of the call of it; 0 outside of all operators
  uint32_t module = 0;       ///< interned path of `ModuleScope`s; in backward and replay, that of the forward
  bool in_backward = false;  ///< a graph task runs on this thread
};

/// Reads what this thread is doing. `op`, `call` and `module` are set only while a watch is. Cost: about 20 ns, in
/// backward 60.
Running running();

/// Observes operators, on the threads that run them, several at once. Must run no operator.
class RunningWatch {
 public:
  virtual void started() noexcept = 0;  ///< an outermost operator, outside of backward
  virtual void backward_ended() noexcept = 0;
  /// A result was made, or replayed. @param storage  of its bytes, not null.
  virtual void made(const void* storage, c10::IntArrayRef sizes) noexcept = 0;

 protected:
  ~RunningWatch() = default;
};

/// Sets the one watch, null for none, by way of `at::RecordFunction`. Backwards end for it where `EngineRun`s do. A
/// watch lives until the process ends: a thread may be about to call it. Cost: one load per recorded or replayed
/// operator while there is none.
void set_running_watch(RunningWatch* watch);

extern std::atomic<bool> running_is_watched;

/// Makes LibTorch announce operators on this thread while alive, or not: that costs 0.1 to 0.2 us for each, and 1.5 for
/// each node of the graph. Does nothing while there is no watch, or if another library had enabled announcements
/// before.
class AnnounceScope {
 public:
  explicit AnnounceScope(bool on);
  ~AnnounceScope();
  AnnounceScope(const AnnounceScope&) = delete;
  AnnounceScope& operator=(const AnnounceScope&) = delete;

 private:
  bool changed_ = false;
  bool before_ = true;
};

/// Surrounds a run of autograd's engine: operators are named after its nodes.
class BackwardScope {
 public:
  BackwardScope() : quiet_(false) {}
  ~BackwardScope();
  BackwardScope(const BackwardScope&) = delete;
  BackwardScope& operator=(const BackwardScope&) = delete;

 private:
  AnnounceScope quiet_;
};

/// Notes the module in which an operator was recorded, for its replay.
void note_recorded(uint64_t seq);

/// Announces an operator that the tape replays: LibTorch does not.
class ReplayedOp {
 public:
  /// @param seq  as given to `note_recorded`. @param name  lives as long as the process
  ReplayedOp(uint64_t seq, const char* name) {
    if (running_is_watched.load(std::memory_order_relaxed)) enter(seq, name);
  }
  ~ReplayedOp() {
    if (entered_) leave();
  }
  ReplayedOp(const ReplayedOp&) = delete;
  ReplayedOp& operator=(const ReplayedOp&) = delete;

  /// @param stack  holds the operator's results.
  void results(const torch::jit::Stack& stack) const;

 private:
  void enter(uint64_t seq, const char* name);
  void leave();
  bool entered_ = false;
  bool replays_before_ = false;
  uint32_t module_before_ = 0;
};

}  // namespace refrain::tape
