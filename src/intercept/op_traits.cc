#include "intercept/op_traits.h"

#include <ATen/core/enum_tag.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <deque>
#include <memory>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

#include "base/fork.h"
#include "base/ordered_mutex.h"
#include "base/thread_owned.h"

namespace refrain::tape {
namespace {

using NameSet = std::unordered_set<std::string_view>;

const NameSet& uninitialized_ops() {
  static const NameSet set{
      "aten::empty",           "aten::empty_strided",           "aten::empty_like",
      "aten::new_empty",       "aten::new_empty_strided",       "aten::empty_permuted",
      "aten::empty_quantized", "aten::_empty_affine_quantized", "aten::_empty_per_channel_affine_quantized"};
  return set;
}

const NameSet& shape_readers() {
  static const NameSet set{"aten::empty_like",        "aten::zeros_like", "aten::ones_like", "aten::full_like",
                           "aten::new_empty",         "aten::new_zeros",  "aten::new_ones",  "aten::new_full",
                           "aten::new_empty_strided", "aten::rand_like",  "aten::randn_like"};
  return set;
}

const NameSet& full_overwriters() {
  static const NameSet set{"aten::fill_",      "aten::zero_",      "aten::copy_",      "aten::normal_",
                           "aten::uniform_",   "aten::bernoulli_", "aten::random_",    "aten::exponential_",
                           "aten::geometric_", "aten::cauchy_",    "aten::log_normal_"};
  return set;
}

const NameSet& effect_ops() {
  static const NameSet set{"aten::resize_",
                           "aten::resize_as_",
                           "aten::_resize_output_",
                           "aten::sparse_resize_",
                           "aten::sparse_resize_and_clear_",
                           "aten::resize_as_sparse_",
                           "aten::record_stream",
                           "aten::set_data",
                           "aten::manual_seed",
                           "aten::seed",
                           "aten::initial_seed",
                           "aten::set_"};
  return set;
}

const NameSet& collective_namespaces() {
  static const NameSet set{"c10d", "_c10d_functional", "_c10d_functional_autograd", "symm_mem"};
  return set;
}

const NameSet& metadata_ops() {
  static const NameSet set{"aten::_unsafe_view", "aten::detach_"};
  return set;
}

struct TableWrite {
  std::string_view op;
  const char* condition;  // bool argument that must be true, or null
  ReplayArg replay;
  std::array<std::string_view, 2> args;
};

// Writers that the schema does not mark, and marked writers whose bytes do not feed the other outputs.
constexpr TableWrite kTableWrites[] = {
    {"aten::native_batch_norm", "training", ReplayArg::kUndefined, {"running_mean", "running_var"}},
    {"aten::cudnn_batch_norm", "training", ReplayArg::kUndefined, {"running_mean", "running_var"}},
    {"aten::miopen_batch_norm", "training", ReplayArg::kUndefined, {"running_mean", "running_var"}},
    {"aten::batch_norm_update_stats", nullptr, ReplayArg::kUndefined, {"running_mean", "running_var"}},
    {"aten::batch_norm_gather_stats", nullptr, ReplayArg::kUndefined, {"running_mean", "running_var"}},
    {"aten::batch_norm_gather_stats_with_counts", nullptr, ReplayArg::kUndefined, {"running_mean", "running_var"}},
    {"aten::_native_batch_norm_legit", "training", ReplayArg::kScratch, {"running_mean", "running_var"}},
    {"aten::_batch_norm_with_update", nullptr, ReplayArg::kScratch, {"running_mean", "running_var"}},
    {"aten::rrelu_with_noise", "training", ReplayArg::kWriteOnly, {"noise", ""}},
    {"aten::rrelu_with_noise_", "training", ReplayArg::kWriteOnly, {"noise", ""}},
};

bool holds_tensor(const c10::Type& type) {
  if (type.kind() == c10::TypeKind::TensorType || type.kind() == c10::TypeKind::AnyType) return true;
  for (const auto& inner : type.containedTypes())
    if (holds_tensor(*inner)) return true;
  return false;
}

// Tensor, Tensor?, Tensor[], Tensor?[], Tensor[]?: what the recorder unpacks.
bool tape_reads(const c10::Type& type) {
  if (!holds_tensor(type)) return true;
  if (type.kind() == c10::TypeKind::TensorType) return true;
  if (type.kind() == c10::TypeKind::OptionalType) return tape_reads(*type.containedTypes()[0]);
  if (type.kind() == c10::TypeKind::ListType) {
    const auto& element = *type.containedTypes()[0];
    if (element.kind() == c10::TypeKind::TensorType) return true;
    return element.kind() == c10::TypeKind::OptionalType &&
           element.containedTypes()[0]->kind() == c10::TypeKind::TensorType;
  }
  return false;
}

// Tensor[], Tensor?[], Tensor[]?.
bool lists_tensors(const c10::Type& type) {
  if (type.kind() == c10::TypeKind::OptionalType) return lists_tensors(*type.containedTypes()[0]);
  return type.kind() == c10::TypeKind::ListType && holds_tensor(type);
}

std::atomic<uint64_t> cache_epoch{1};

class Cache {
 public:
  Cache();

  const OpTraits& find(const c10::OperatorHandle& op) {
    const auto& key = op.operator_name();
    std::lock_guard guard(mutex_);
    auto& entry = table_[key];
    if (!entry) entry = std::make_unique<OpTraits>(op);
    return *entry;
  }

  // Old traits stay allocated: recorded operators point at them.
  void forget(const c10::OperatorName& name) {
    std::lock_guard guard(mutex_);
    auto it = table_.find(name);
    if (it == table_.end()) return;
    retired_.push_back(std::move(it->second));
    table_.erase(it);
    cache_epoch.fetch_add(1);
  }

  bool has_effect(const std::string& qualified_name) {
    std::lock_guard guard(effects_mutex_);
    return effects_.contains(qualified_name);
  }

  void add_effect(const std::string& qualified_name) {
    {
      std::lock_guard guard(effects_mutex_);
      effects_.insert(qualified_name);
    }
    forget_all();
  }

 private:
  void forget_all() {
    std::lock_guard guard(mutex_);
    for (auto& [name, traits] : table_) retired_.push_back(std::move(traits));
    table_.clear();
    cache_epoch.fetch_add(1);
  }

  OrderedMutex mutex_{LockOrder::kTraits};
  std::unordered_map<c10::OperatorName, std::unique_ptr<OpTraits>> table_;
  std::deque<std::unique_ptr<OpTraits>> retired_;
  OrderedMutex effects_mutex_{LockOrder::kEffects};
  std::unordered_set<std::string> effects_;  ///< marked by users
  c10::RegistrationHandleRAII listening_;
};

Cache& cache();

struct Listener final : c10::OpRegistrationListener {
  void onOperatorRegistered(const c10::OperatorHandle&) override {}
  void onOperatorDeregistered(const c10::OperatorHandle& op) override { cache().forget(op.operator_name()); }
};

Cache::Cache() : listening_(c10::Dispatcher::singleton().addRegistrationListener(std::make_unique<Listener>())) {
  lock_at_fork(mutex_);
  lock_at_fork(effects_mutex_);
}

// Never destroyed: operators of static tensors still run at exit.
Cache& cache() {
  static auto* instance = new Cache;
  return *instance;
}

}  // namespace

OpTraits::OpTraits(const c10::OperatorHandle& op)
    : handle(op), qualified_name(op.schema().name()), overload_name(op.schema().overload_name()) {
  const auto& schema = op.schema();
  const std::string& qualified = qualified_name;
  const auto space = qualified.substr(0, qualified.find("::"));
  num_args = static_cast<uint16_t>(schema.arguments().size());
  num_returns = static_cast<uint16_t>(schema.returns().size());

  for (size_t i = 0; i < schema.arguments().size(); ++i) {
    const auto& argument = schema.arguments()[i];
    if (argument.alias_info() && argument.alias_info()->isWrite()) writes.push_back({static_cast<uint16_t>(i)});
    opaque_args |= !tape_reads(*argument.type());
    if (lists_tensors(*argument.type())) tensor_lists.push_back(static_cast<uint16_t>(i));
  }
  for (const auto& row : kTableWrites) {
    if (row.op != qualified) continue;
    const int condition = row.condition ? schema.argumentIndexWithName(row.condition).value_or(-1) : -1;
    for (auto name : row.args) {
      const auto index = name.empty() ? std::nullopt : schema.argumentIndexWithName(std::string(name));
      if (!index) continue;
      WriteTrait trait{static_cast<uint16_t>(*index), row.replay, static_cast<int16_t>(condition)};
      auto marked = std::find_if(writes.begin(), writes.end(), [&](const auto& w) { return w.arg == trait.arg; });
      if (marked == writes.end())
        writes.push_back(trait);
      else
        *marked = trait;
    }
  }

  bool all_alias_read = num_returns > 0, all_alias_written = true;
  for (const auto& ret : schema.returns()) {
    const auto* alias = ret.alias_info();
    all_alias_read &= alias && !alias->isWrite();
    all_alias_written &= alias && alias->isWrite();
    opaque_args |= !tape_reads(*ret.type());
  }
  metadata_in_place = op.hasTag(at::Tag::inplace_view) && !effect_ops().count(qualified);
  view_only = (all_alias_read && writes.empty()) || metadata_in_place || metadata_ops().count(qualified);
  if (view_only) writes.clear();
  pure_inplace = all_alias_written && !writes.empty();
  moves_once = std::any_of(writes.begin(), writes.end(), [](const auto& write) {
    return write.replay == ReplayArg::kScratch || write.replay == ReplayArg::kUndefined;
  });
  random = op.hasTag(at::Tag::nondeterministic_seeded);
  maybe_random = !random && space != "aten" && space != "prims" && space != "prim";
  collective = collective_namespaces().count(space) > 0;
  effect = effect_ops().count(qualified) || collective || space == "profiler" || opaque_args ||
           cache().has_effect(qualified);
  uninitialized = uninitialized_ops().count(qualified) && writes.empty();
  only_metadata = shape_readers().count(qualified) && writes.empty();
  full_overwrite = full_overwriters().count(qualified);
  const auto names = [&](const char* part) { return qualified.find(part) != std::string::npos; };
  if (op.hasTag(at::Tag::pointwise))
    precision = ReadsPrecision::kNone;
  else if (names("conv"))
    precision = ReadsPrecision::kConv;
  else if (names("rnn") || names("lstm") || names("gru"))
    precision = ReadsPrecision::kRnn;
  cast = qualified == "aten::_to_copy";
}

std::string OpTraits::name() const { return c10::toString(handle.operator_name()); }

namespace {

// A thread's table in front of the shared one.
struct Front {
  struct Entry {
    const void* key = nullptr;
    const OpTraits* traits = nullptr;
  };
  uint64_t epoch = 0;
  std::array<Entry, 256> entries;

  Front() = default;
  ~Front();
  Front(const Front&) = delete;
  Front& operator=(const Front&) = delete;
};

// In static thread-local storage, which is small and cheap to reach.
[[gnu::tls_model("initial-exec")]] thread_local constinit Front* front_of_thread = nullptr;

Front::~Front() { front_of_thread = nullptr; }

}  // namespace

const OpTraits& op_traits(const c10::OperatorHandle& op) {
  if (!front_of_thread) front_of_thread = &thread_owned<Front>();
  auto& front = *front_of_thread;
  const uint64_t epoch = cache_epoch.load(std::memory_order_acquire);
  if (front.epoch != epoch) {
    front.entries.fill({});
    front.epoch = epoch;
  }
  const void* key = &op.schema();
  auto& entry = front.entries[(reinterpret_cast<uintptr_t>(key) >> 5) * 0x9E3779B97F4A7C15ull >> 56];
  if (entry.key != key) entry = {key, &cache().find(op)};
  return *entry.traits;
}

void mark_effect_op(const std::string& qualified_name) { cache().add_effect(qualified_name); }

}  // namespace refrain::tape
