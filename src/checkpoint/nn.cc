#include "refrain/nn.h"

#include <c10/util/Type.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "refrain/error.h"
#include "trace/trace_scopes.h"

namespace refrain::detail {
namespace {

using torch::nn::Module;

constexpr size_t kMostNamesInMessage = 8;

struct Mark {
  std::weak_ptr<const Module> module;  ///< expired: another module may have this address by now
  std::shared_ptr<const CheckpointOptions> options;
  std::string name;  ///< in the model that was marked
  bool enabled = true;
};

/// Numbers of modules among those of their class, in the order in which they are met first. The same module, the same
/// number.
class ModuleNumbers {
 public:
  int64_t of(const Module& module, const std::string& class_name) {
    const std::lock_guard lock(mutex_);
    auto& known = of_[&module];
    if (!known.module.expired()) return known.number;
    known = {module.weak_from_this(), next_[class_name]++};
    const auto number = known.number;
    std::erase_if(of_, [](const auto& entry) { return entry.second.module.expired(); });
    return number;
  }

 private:
  struct Known {
    std::weak_ptr<const Module> module;  ///< expired: another module may have this address by now
    int64_t number = 0;
  };
  std::mutex mutex_;
  std::unordered_map<const Module*, Known> of_;
  std::unordered_map<std::string, int64_t> next_;
};

/// The marks of the process, and the numbers of its modules. Options are moved to `Dropped`, which its user declares
/// before the lock and so frees after it: a policy's captures may have destructors that call this again.
struct Marks {
  using Map = std::unordered_map<const Module*, Mark>;
  using Dropped = std::vector<std::shared_ptr<const CheckpointOptions>>;

  std::mutex mutex;
  std::atomic<bool> any = false;
  Map of;
  ModuleNumbers numbers;  ///< has a mutex of its own

  Mark* live(const Module* module) {
    const auto found = of.find(module);
    return found == of.end() || found->second.module.expired() ? nullptr : &found->second;
  }

  void sweep(Dropped& dropped) {
    std::erase_if(of, [&](auto& entry) {
      if (!entry.second.module.expired()) return false;
      dropped.push_back(std::move(entry.second.options));
      return true;
    });
  }

  static Marks& all() {
    static auto* const marks = new Marks;  // outlives every module
    return *marks;
  }
};

// Not by `modules()`, which needs a shared_ptr to `model`.
std::unordered_set<Module*> tree(Module& model) {
  std::unordered_set<Module*> modules{&model};
  for (const auto& below : model.modules(/*include_self=*/false)) modules.insert(below.get());
  return modules;
}

std::string names_in(const Module& model) {
  std::vector<std::string> names{fmt::format("\"\" ({})", model.name())};
  for (const auto& item : model.named_modules({}, /*include_self=*/false)) {
    if (names.size() == kMostNamesInMessage) {
      names.emplace_back("...");
      break;
    }
    names.push_back(fmt::format("\"{}\" ({})", item.key(), item.value()->name()));
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

/// Chooses modules, with their names; of several, the first.
std::unordered_map<std::shared_ptr<Module>, std::string> choose(Module& model, const ModulePredicate& predicate) {
  std::unordered_map<std::shared_ptr<Module>, std::string> chosen;
  if (predicate("", model)) {
    auto owner = model.weak_from_this().lock();
    if (!owner)
      throw InvalidArgument(fmt::format(
          "[refrain::apply_checkpointing] the predicate is true for the model itself (\"\", {}), expected a model that "
          "a std::shared_ptr owns: a mark must not outlive it. Make it with std::make_shared or a module holder and "
          "mark it after its constructor, or return false for \"\".",
          model.name()));
    chosen.emplace(std::move(owner), "");
  }
  for (const auto& item : model.named_modules({}, /*include_self=*/false))
    if (predicate(item.key(), *item.value())) chosen.emplace(item.value(), item.key());
  if (chosen.empty())
    throw InvalidArgument(
        fmt::format("[refrain::apply_checkpointing] the predicate is true for no module, expected at least one of: {}.",
                    names_in(model)));
  return chosen;
}

}  // namespace

void throw_null_module() {
  throw InvalidArgument(
      "[refrain::checkpoint] found a null pointer, an empty module holder or an empty function, expected a module or a function. "
      "`ModuleList::ptr<T>(i)` is null if module i is not a T.");
}

void throw_uncopyable_module(const std::string& name) {
  throw InvalidArgument(
      fmt::format("[refrain::nn::Checkpoint] cannot clone {}: its class cannot be copied; expected one with a copy "
                  "constructor and a copy assignment. Give it both, or construct another Checkpoint and copy the "
                  "parameters.",
                  name));
}

std::shared_ptr<const CheckpointOptions> mark_of(const Module& module) {
  auto& marks = Marks::all();
  if (!marks.any.load(std::memory_order_relaxed)) return nullptr;
  const std::lock_guard lock(marks.mutex);
  const auto* const mark = marks.live(&module);
  return mark && mark->enabled ? mark->options : nullptr;
}

int64_t mark(Module& model, const ModulePredicate& predicate, const CheckpointOptions& options) {
  if (!predicate)
    throw InvalidArgument(
        "[refrain::apply_checkpointing] found an empty predicate, expected a function of name and module.");
  const auto chosen = choose(model, predicate);
  const auto kept = std::make_shared<const CheckpointOptions>(options);
  Marks::Dropped dropped;
  auto& marks = Marks::all();
  const std::lock_guard lock(marks.mutex);
  marks.sweep(dropped);
  for (const auto& [module, name] : chosen) {
    auto& mark = marks.of[module.get()];
    dropped.push_back(std::move(mark.options));
    mark = {module, kept, name};
  }
  marks.any.store(true, std::memory_order_relaxed);
  return static_cast<int64_t>(chosen.size());
}

int64_t unmark(Module& model) {
  Marks::Dropped dropped;
  auto& marks = Marks::all();
  const std::lock_guard lock(marks.mutex);
  marks.sweep(dropped);
  int64_t count = 0;
  for (const auto* module : tree(model)) {
    auto node = marks.of.extract(module);
    if (node.empty()) continue;
    dropped.push_back(std::move(node.mapped().options));
    ++count;
  }
  marks.any.store(!marks.of.empty(), std::memory_order_relaxed);
  return count;
}

int64_t set_enabled(Module& model, bool enabled) {
  auto& marks = Marks::all();
  const std::lock_guard lock(marks.mutex);
  int64_t count = 0;
  for (auto* module : tree(model)) {
    auto* const mark = marks.live(module);
    auto* const settings = dynamic_cast<nn::CheckpointSettings*>(module);
    if (mark) mark->enabled = enabled;
    if (settings) enabled ? settings->enable() : settings->disable();
    if (mark || settings) ++count;
  }
  return count;
}

namespace {

/// Name in a mark, enabled or not; "" if there is none.
std::string name_of_mark(const Module& module) {
  auto& marks = Marks::all();
  if (!marks.any.load(std::memory_order_relaxed)) return "";
  const std::lock_guard lock(marks.mutex);
  const auto* const mark = marks.live(&module);
  return mark ? mark->name : "";
}

/// Part of `name` that is not the end of `path` already: "mlp" for "blocks.3.mlp" in "gpt.blocks.3".
std::string_view part_not_in(std::string_view name, std::string_view path) {
  for (size_t from = 0; from <= path.size(); from = std::min(path.find('.', from), path.size()) + 1) {
    const auto end = path.substr(from);
    if (name == end) return {};
    if (name.starts_with(end) && name[end.size()] == '.') return name.substr(end.size() + 1);
  }
  return name;
}

/// Shortens "torch::nn::LinearImpl" to "Linear".
std::string class_name(const std::type_info& type) {
  std::string name = c10::demangle(type.name());
  if (const auto arguments = name.find('<'); arguments != std::string::npos) name.resize(arguments);
  if (const auto scope = name.rfind("::"); scope != std::string::npos) name.erase(0, scope + 2);
  if (name.size() > 4 && name.ends_with("Impl")) name.resize(name.size() - 4);
  return name;
}

}  // namespace

TraceScope::TraceScope(const Module& module) {
  if (!tape::has_trace_listener()) return;
  const auto name = name_of_mark(module);
  const auto part = part_not_in(name, tape::trace_path());
  if (!part.empty()) open(part);
}

TraceScope::TraceScope(const Module& module, const std::type_info& type) : TraceScope(module) {
  if (is_open_ || !tape::has_trace_listener() || !name_of_mark(module).empty()) return;
  const auto name = class_name(type);
  const bool is_owned = !module.weak_from_this().expired();
  open(is_owned ? fmt::format("{}.{}", name, Marks::all().numbers.of(module, name)) : name);
}

}  // namespace refrain::detail
