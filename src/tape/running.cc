#include "tape/running.h"

#include <ATen/record_function.h>
#include <c10/util/flat_hash_map.h>
#include <torch/csrc/autograd/graph_task.h>

#include <deque>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "refrain/selective.h"
#include "tape/tape.h"

namespace refrain::tape {
namespace {

/// Texts and their numbers. Entries stay where they are.
class Names {
 public:
  static Names& get() {
    static auto* names = new Names;
    return *names;
  }

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
  std::mutex mutex_;
  std::deque<std::string> texts_;
  std::unordered_map<std::string_view, uint32_t> numbers_;
};

/// The module in which something with a number was made.
class Modules {
 public:
  void put(uint64_t key, uint32_t module) {
    std::lock_guard lock(mutex_);
    modules_[key] = module;
  }
  uint32_t find(uint64_t key) {
    std::lock_guard lock(mutex_);
    const auto found = modules_.find(key);
    return found == modules_.end() ? 0 : found->second;
  }
  void clear() {
    std::lock_guard lock(mutex_);
    modules_.clear();
  }

 private:
  std::mutex mutex_;
  ska::flat_hash_map<uint64_t, uint32_t> modules_;
};

// By autograd's sequence number, which each thread counts for itself, and by the tape's.
Modules& node_modules() {
  static auto* modules = new Modules;
  return *modules;
}
Modules& recorded_modules() {
  static auto* modules = new Modules;
  return *modules;
}

uint64_t node_key(uint64_t thread, int64_t sequence) { return thread << 40 ^ static_cast<uint64_t>(sequence); }

struct ThreadRunning {
  uint32_t op = 0;
  uint64_t call = 0;
  uint64_t calls = 0;
  int depth = 0;
  bool replays = false;
  uint32_t replayed_module = 0;
  std::string path;  ///< of `path_number`
  uint32_t path_number = 0;
  std::vector<uint32_t> nodes;  ///< module of each running node of the graph, the innermost last

  uint32_t module() {
    if (replays) return replayed_module;
    const auto now = module_scope();
    if (now.empty()) return nodes.empty() ? 0 : nodes.back();
    if (now != path) {
      path = now;
      path_number = intern(now);
    }
    return path_number;
  }

  void enter(std::string_view name) {
    if (depth++ > 0) return;
    op = intern(name);
    call = ++calls;
  }
  void leave() {
    if (--depth > 0) return;
    op = 0;
    call = 0;
  }
};

ThreadRunning& thread_running() {
  static thread_local ThreadRunning running;
  return running;
}

std::atomic<RunningWatch*> current_watch{nullptr};

void tell(RunningWatch& watch, const c10::IValue& result) {
  const auto one = [&](const at::Tensor& tensor) {
    if (!tensor.defined() || !has_plain_storage(tensor)) return;
    const void* storage = tensor.storage().data();
    if (storage) watch.made(storage, tensor.sizes());
  };
  if (result.isTensor()) return one(result.toTensor());
  if (!result.isTensorList()) return;
  for (const at::Tensor& tensor : result.toTensorVector()) one(tensor);
}

// A range that a user named lacks "::", and may span a whole step; the engine's spans a node.
bool is_operator(const at::RecordFunction& fn) {
  const std::string_view name(fn.name());
  return name.find("::") != std::string_view::npos && !name.starts_with("autograd::");
}

std::unique_ptr<at::ObserverContext> on_start(const at::RecordFunction& fn) {
  auto& thread = thread_running();
  if (fn.scope() == at::RecordScope::BACKWARD_FUNCTION) {
    thread.nodes.push_back(node_modules().find(node_key(fn.forwardThreadId(), fn.seqNr())));
    return nullptr;
  }
  if (!is_operator(fn)) return nullptr;
  thread.enter(fn.name());
  if (fn.seqNr() >= 0) node_modules().put(node_key(fn.threadId(), fn.seqNr()), thread.module());
  auto* watch = current_watch.load();
  if (watch && thread.depth == 1) watch->started();
  return nullptr;
}

void on_end(const at::RecordFunction& fn, at::ObserverContext*) {
  auto& thread = thread_running();
  if (fn.scope() == at::RecordScope::BACKWARD_FUNCTION) {
    if (!thread.nodes.empty()) thread.nodes.pop_back();
    return;
  }
  if (!is_operator(fn)) return;
  thread.leave();
  if (auto* watch = current_watch.load())
    for (const auto& result : fn.outputs()) tell(*watch, result);
}

}  // namespace

std::atomic<bool> running_is_watched{false};

uint32_t intern(std::string_view text) {
  static thread_local std::unordered_map<std::string_view, uint32_t> known;
  if (text.empty()) return 0;
  const auto found = known.find(text);
  if (found != known.end()) return found->second;
  const auto number = Names::get().number(text);
  known.emplace(Names::get().text(number), number);
  return number;
}

std::string_view interned(uint32_t number) { return Names::get().text(number); }

Running running() {
  auto& thread = thread_running();
  return {thread.op, thread.call, thread.module(), ThreadState::get().recomputing,
          torch::autograd::get_current_graph_task_id() >= 0};
}

void set_running_watch(RunningWatch* watch) {
  static std::mutex mutex;
  static at::CallbackHandle handle = 0;
  std::lock_guard lock(mutex);
  if (handle != 0) at::removeCallback(std::exchange(handle, 0));
  node_modules().clear();
  recorded_modules().clear();
  current_watch.store(watch);
  running_is_watched.store(watch != nullptr);
  if (!watch) return;
  handle = at::addGlobalCallback(at::RecordFunctionCallback(&on_start, &on_end)
                                     .needsOutputs(true)
                                     .scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION}));
}

void note_recorded(uint64_t seq) {
  if (running_is_watched.load(std::memory_order_relaxed)) recorded_modules().put(seq, thread_running().module());
}

void ReplayedOp::enter(const Op& op) {
  auto& thread = thread_running();
  entered_ = true;
  module_before_ = std::exchange(thread.replayed_module, recorded_modules().find(op.seq));
  replays_before_ = std::exchange(thread.replays, true);
  thread.enter(op.traits->qualified_name);
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
  if (!watch) return;
  for (const auto& result : stack) tell(*watch, result);
}

}  // namespace refrain::tape
