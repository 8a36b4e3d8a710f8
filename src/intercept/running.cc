#include "intercept/running.h"

#include <ATen/record_function.h>
#include <c10/util/flat_hash_map.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/graph_task.h>

#include <algorithm>
#include <array>
#include <deque>
#include <mutex>
#include <string>
#include <string_view>
#include <typeindex>
#include <unordered_map>
#include <vector>

#include "base/fork.h"
#include "base/thread_owned.h"
#include "intercept/for_each_tensor.h"
#include "intercept/module_ranges.h"
#include "intercept/tensor_meta.h"
#include "refrain/selective.h"

namespace refrain::tape {
namespace {

/// Texts and their numbers. Entries never move.
class Names {
 public:
  Names() { lock_at_fork(mutex_); }

  uint32_t number(std::string_view text) {
    std::lock_guard lock(mutex_);
    const auto found = numbers_.find(text);
    if (found != numbers_.end()) return found->second;
    texts_.emplace_back(text);
    return numbers_.emplace(texts_.back(), static_cast<uint32_t>(texts_.size())).first->second;
  }

  std::string_view text(uint32_t number) {
    std::lock_guard lock(mutex_);
    return number == 0 ? std::string_view() : texts_[number - 1];
  }

 private:
  OrderedMutex mutex_{LockOrder::kNames};
  std::deque<std::string> texts_;
  std::unordered_map<std::string_view, uint32_t> numbers_;
};

/// Modules of autograd's nodes and of recorded operators. Nodes are numbered by each thread for itself.
struct NodeModules {
  NodeModules() { lock_at_fork(mutex); }
  OrderedMutex mutex{LockOrder::kModules};  // guards what follows
  std::unordered_map<uint64_t, ModuleRanges> nodes;
  ska::flat_hash_map<uint64_t, uint32_t> recorded;
};

/// Never destroyed: operators of static tensors still run at exit.
struct Shared {
  static Shared& get() {
    static auto* shared = new Shared;
    return *shared;
  }
  Names names;
  NodeModules modules;
};

std::atomic<uint64_t> watches{0};

/// Numbers of names by their address, which is nearly always that of the same name as last time.
class NameCache {
 public:
  uint32_t number(const char* name) {
    auto& entry = entries_[reinterpret_cast<uintptr_t>(name) / 16 % entries_.size()];
    if (entry.name != name || entry.text != name) {
      const auto number = intern(name);
      entry = {name, number, interned(number)};
    }
    return entry.number;
  }

 private:
  struct Entry {
    const char* name = nullptr;
    uint32_t number = 0;
    std::string_view text;
  };
  std::array<Entry, 256> entries_{};
};

struct ThreadRunning {
  NameCache names;
  std::unordered_map<std::string_view, uint32_t> numbers;  ///< of texts, in front of those that all threads share
  uint32_t op = 0;
  uint64_t call = 0;
  uint64_t calls = 0;
  int depth = 0;
  bool replays = false;
  uint32_t replayed_module = 0;
  std::string path;  ///< of `path_number`
  uint32_t path_number = 0;
  std::unordered_map<std::type_index, uint32_t> node_names;
  uint64_t noted_watch = 0;  ///< `watches` when nodes were noted last, and their module
  uint32_t noted_module = 0;

  /// Path of the open scopes, if any.
  uint32_t scope() {
    const auto now = module_scope();
    if (now.empty()) return 0;
    if (now != path) {
      path = now;
      path_number = intern(now);
    }
    return path_number;
  }

  /// Module of a node of the graph, as it was in forward.
  static uint32_t module_of(const torch::autograd::Node& node) {
    auto& made = Shared::get().modules;
    std::lock_guard lock(made.mutex);
    const auto found = made.nodes.find(node.thread_id());
    return found == made.nodes.end() ? 0 : found->second.of(node.sequence_nr());
  }

  uint32_t name_of(const torch::autograd::Node& node) {
    auto& number = node_names[std::type_index(typeid(node))];
    if (number == 0) number = intern(node.name());
    return number;
  }

  Running now() {
    Running running{op, call, 0, torch::autograd::get_current_graph_task_id() >= 0};
    running.module = replays ? replayed_module : scope();
    if (!running.in_backward || (running.op != 0 && running.module != 0)) return running;
    const auto node = torch::autograd::get_current_node();
    if (!node) return running;
    if (running.module == 0) running.module = module_of(*node);
    if (running.op == 0) {
      running.op = name_of(*node);
      running.call = reinterpret_cast<uintptr_t>(node.get());
    }
    return running;
  }

  void enter(const char* name) {
    if (depth++ > 0) return;
    op = names.number(name);
    call = ++calls;
  }
  void leave() {
    if (--depth > 0) return;
    op = 0;
    call = 0;
  }

  void note_nodes(uint64_t thread, int64_t sequence) {
    const auto now = this->now().module;
    const auto watch = watches.load(std::memory_order_relaxed);
    if (now == noted_module && watch == noted_watch) return;
    noted_module = now;
    noted_watch = watch;
    auto& made = Shared::get().modules;
    std::lock_guard lock(made.mutex);
    made.nodes[thread].from(static_cast<uint64_t>(sequence), now);
  }
};

ThreadRunning& thread_running() { return thread_owned<ThreadRunning>(); }

std::atomic<RunningWatch*> current_watch{nullptr};
std::atomic<bool> is_alone{true};  ///< no other library had enabled announcements when the watch was set

void tell(RunningWatch& watch, c10::ArrayRef<c10::IValue> results) {
  for_each_tensor(results.data(), results.size(), [&](const at::Tensor& tensor, size_t, int32_t) {
    if (!has_plain_storage(tensor)) return;
    const void* storage =
        tensor.storage().unsafeGetStorageImpl()->_mutable_data_ptr_no_checks().get();  // null if evicted
    if (storage) watch.made(storage, tensor.sizes());
  });
}

// A range that a user named lacks "::", and may span a whole step; the engine's spans a node.
bool is_operator(const at::RecordFunction& fn) {
  const std::string_view name(fn.name());
  return name.find("::") != std::string_view::npos && !name.starts_with("autograd::");
}

std::unique_ptr<at::ObserverContext> on_start(const at::RecordFunction& fn) {
  if (!is_operator(fn)) return nullptr;
  auto& thread = thread_running();
  thread.enter(fn.name());
  if (fn.seqNr() >= 0) thread.note_nodes(fn.threadId(), fn.seqNr());
  if (thread.depth > 1) return nullptr;
  if (auto* watch = current_watch.load()) watch->started();
  return nullptr;
}

void on_end(const at::RecordFunction& fn, at::ObserverContext*) {
  if (!is_operator(fn)) return;
  auto& thread = thread_running();
  thread.leave();
  if (auto* watch = current_watch.load()) tell(*watch, fn.outputs());
}

}  // namespace

std::atomic<bool> running_is_watched{false};

uint32_t intern(std::string_view text) {
  if (text.empty()) return 0;
  auto& known = thread_running().numbers;
  const auto found = known.find(text);
  if (found != known.end()) return found->second;
  auto& names = Shared::get().names;
  const auto number = names.number(text);
  known.emplace(names.text(number), number);
  return number;
}

std::string_view interned(uint32_t number) { return Shared::get().names.text(number); }

Running running() { return thread_running().now(); }

void set_running_watch(RunningWatch* watch) {
  static auto& mutex = make_mutex_for_forks(LockOrder::kWatch);
  static at::CallbackHandle handle = 0;
  std::lock_guard lock(mutex);
  if (handle != 0) at::removeCallback(std::exchange(handle, 0));
  {
    auto& made = Shared::get().modules;
    std::lock_guard made_lock(made.mutex);
    made.nodes.clear();
    made.recorded.clear();
  }
  watches.fetch_add(1);
  current_watch.store(watch);
  running_is_watched.store(watch != nullptr);
  if (!watch) return;
  is_alone = !at::hasCallbacks();
  handle = at::addGlobalCallback(
      at::RecordFunctionCallback(&on_start, &on_end).needsOutputs(true).scopes({at::RecordScope::FUNCTION}));
}

AnnounceScope::AnnounceScope(bool on) : before_(at::isRecordFunctionEnabled()) {
  if (!running_is_watched.load() || !is_alone.load() || before_ == on) return;
  changed_ = true;
  at::enableRecordFunction(on);
}

AnnounceScope::~AnnounceScope() {
  if (changed_) at::enableRecordFunction(before_);
}

BackwardScope::~BackwardScope() {
  if (auto* watch = current_watch.load()) watch->backward_ended();
}

void note_recorded(uint64_t seq) {
  if (!running_is_watched.load(std::memory_order_relaxed)) return;
  const auto module = thread_running().now().module;
  auto& made = Shared::get().modules;
  std::lock_guard lock(made.mutex);
  made.recorded[seq] = module;
}

void ReplayedOp::enter(uint64_t seq, const char* name) {
  auto& thread = thread_running();
  entered_ = true;
  uint32_t module = 0;
  {
    auto& made = Shared::get().modules;
    std::lock_guard lock(made.mutex);
    const auto found = made.recorded.find(seq);
    if (found != made.recorded.end()) module = found->second;
  }
  module_before_ = std::exchange(thread.replayed_module, module);
  replays_before_ = std::exchange(thread.replays, true);
  thread.enter(name);
  auto* watch = current_watch.load();
  if (watch && thread.depth == 1) watch->started();
}

void ReplayedOp::leave() {
  auto& thread = thread_running();
  thread.leave();
  thread.replays = replays_before_;
  thread.replayed_module = module_before_;
}

void ReplayedOp::results(const torch::jit::Stack& stack) const {
  auto* watch = entered_ ? current_watch.load() : nullptr;
  if (watch) tell(*watch, stack);
}

}  // namespace refrain::tape
