#pragma once

#include <ATen/core/stack.h>
#include <c10/util/ArrayRef.h>

#include <atomic>
#include <cstdint>
#include <string_view>

namespace refrain::tape {

/// A number for `text`, the same for the same text in this process; 0 for "". Never forgotten: for names, not for data.
uint32_t intern(std::string_view text);
/// The text of a number from `intern`; valid until the process ends.
std::string_view interned(uint32_t number);

/// What a thread is doing, for a label on the memory that it takes.
struct Running {
  uint32_t op = 0;           ///< interned name of its outermost operator, "aten::linear"; in backward the node's, "MmBackward0"
  uint64_t call = 0;         ///< tells calls of it apart; 0 outside of all operators
  uint32_t module = 0;       ///< interned path of `ModuleScope`s: in backward and replay, of the forward behind it
  bool in_backward = false;  ///< a graph task runs on this thread
};

/// This thread, now. `op`, `call` and `module` are known only while somebody watches. Cost: about 20 ns, in backward 60.
Running running();

/// Hears what operators do, on the threads that run them, several at once. Must run no operator.
class RunningWatch {
 public:
  virtual void started() noexcept = 0;  ///< an outermost operator, outside of backward
  virtual void backward_ended() noexcept = 0;
  /// A result, or its replay. @param storage  of its bytes, not null.
  virtual void made(const void* storage, c10::IntArrayRef sizes) noexcept = 0;

 protected:
  ~RunningWatch() = default;
};

/// Sets the one watch, null for none, by way of `at::RecordFunction`. Backwards end for it where `EngineRun`s do. A watch lives until the process ends: a thread may
/// be about to call it. Cost: one load per recorded or replayed operator while there is none.
void set_running_watch(RunningWatch* watch);

extern std::atomic<bool> running_is_watched;

/// While it lives, LibTorch announces operators on this thread, or does not: it costs 0.1 to 0.2 us for each, and for each
/// node of the graph 1.5. Nothing happens while nobody watches, or if somebody else had asked for announcements before.
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

/// Around a run of autograd's engine: operators are named after its nodes.
class BackwardScope {
 public:
  BackwardScope() : quiet_(false) {}
  ~BackwardScope();
  BackwardScope(const BackwardScope&) = delete;
  BackwardScope& operator=(const BackwardScope&) = delete;

 private:
  AnnounceScope quiet_;
};

/// Notes in which module an operator was recorded, for its replay.
void note_recorded(uint64_t seq);

/// An operator that the tape replays: LibTorch does not announce it.
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

  /// @param stack  holds its results.
  void results(const torch::jit::Stack& stack) const;

 private:
  void enter(uint64_t seq, const char* name);
  void leave();
  bool entered_ = false;
  bool replays_before_ = false;
  uint32_t module_before_ = 0;
};

}  // namespace refrain::tape
