#include "trace/observer.h"

#include <ATen/SparseCsrTensorImpl.h>
#include <ATen/SparseTensorImpl.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/function.h>

#include <algorithm>
#include <unordered_set>

#include "intercept/for_each_tensor.h"
#include "tape/thread_state.h"

namespace refrain::tape {

// --- observing -------------------------------------------------------------------------------------------------------

class PlainSlot final : public torch::autograd::SavedVariableHooks {
 public:
  void call_pack_hook(const at::Tensor& tensor) override {
    auto save = std::make_shared<PlainSave>();
    if (!tensor.is_inference()) {
      save->counter = tensor.unsafeGetTensorImpl()->version_counter();
      save->version = save->counter.current_version();
    }
    save->tensor = without_history(tensor);
    if (auto* observer = static_cast<Observer*>(ThreadState::get().observer)) {
      save->origin = observer->origin_of(tensor);
      observer->plain_.push_back(save);
    }
    save_ = std::move(save);
  }

  at::Tensor call_unpack_hook() override {
    TORCH_CHECK(!save_->counter.enabled() || save_->counter.current_version() == save_->version,
                "one of the variables needed for gradient computation has been modified by an inplace operation: a ",
                save_->tensor.toString(), " of size ", save_->tensor.sizes(), " is at version ",
                save_->counter.current_version(), "; expected version ", save_->version, " instead.");
    return save_->tensor;
  }

 private:
  std::shared_ptr<const PlainSave> save_;
};

Observer::~Observer() {
  TapeLock lock;
  for (auto* region : regions_) lock.release(region);
}

void Observer::opened(Region* region) {
  ++region->refs;
  regions_.push_back(region);
}

void Observer::ran_effect(const OpTraits& traits, const torch::jit::Stack& results) {
  const auto made = torch::jit::last(results, traits.num_returns);
  for_each_tensor(made.data(), made.size(), [&](const at::Tensor& tensor, size_t, int32_t) {
    if (!has_plain_storage(tensor)) return;
    const auto& storage = tensor.storage();
    effects_.insert_or_assign(storage.unsafeGetStorageImpl(), std::pair(storage.getWeakStorageImpl(), &traits));
  });
}

std::unique_ptr<torch::autograd::SavedVariableHooks> Observer::hooks() { return std::make_unique<PlainSlot>(); }

Origin Observer::origin_of(const at::Tensor& tensor) {
  const at::TensorBase& base = tensor.is_view() ? tensor._base() : tensor;
  const auto& node = base.grad_fn();
  Origin origin;
  origin.order = next_order_++;
  if (node) origin.op = node->name();
  origin.parameter = !node && base.requires_grad();
  if (origin.parameter) origin.leaf = c10::weak_intrusive_ptr<c10::TensorImpl>(base.getIntrusivePtr());
  return origin;
}

// --- reporting -------------------------------------------------------------------------------------------------------

namespace {

/// A piece of memory behind a tensor, and the number of its owners.
struct Piece {
  const void* id;
  int64_t bytes;
  size_t holders;
};

int64_t bytes_in(const c10::StorageImpl& storage) {
  return storage.data() ? static_cast<int64_t>(storage.nbytes()) : 0;  // meta tensors have sizes without bytes
}

Piece piece_of(const c10::Storage& storage) {
  auto* impl = storage.unsafeGetStorageImpl();
  return {impl, bytes_in(*impl), storage.use_count()};
}

// Copies of a sparse tensor share the tensors it is made of.
Piece part(const at::Tensor& tensor, size_t own) {
  return {tensor.unsafeGetTensorImpl(), bytes_in(*tensor.storage().unsafeGetStorageImpl()), tensor.use_count() - own};
}

std::vector<Piece> pieces_of(const at::Tensor& tensor) {
  auto* impl = tensor.unsafeGetTensorImpl();
  if (tensor.is_sparse()) {
    const auto* coo = static_cast<const at::SparseTensorImpl*>(impl);
    return {part(coo->indices(), 1), part(coo->values(), 1)};
  }
  if (impl->is_sparse_compressed()) {
    const auto* csr = static_cast<const at::SparseCsrTensorImpl*>(impl);
    return {part(csr->compressed_indices(), 0), part(csr->plain_indices(), 0), part(csr->values(), 0)};
  }
  if (impl->has_storage() && tensor.storage()) return {piece_of(tensor.storage())};
  return {{impl, static_cast<int64_t>(tensor.numel() * tensor.element_size()), 1}};
}

bool is_within(const Region* region, const Region* outer) {
  while (region && region != outer) region = region->parent;
  return region != nullptr;
}

std::string operators(int64_t n) { return fmt::format("{} operator{}", n, n == 1 ? "" : "s"); }

}  // namespace

/// Reads the tape for one report, under its lock.
class ReportWriter {
 public:
  using Saves = std::vector<std::shared_ptr<const PlainSave>>;

  ReportWriter(TapeLock& lock, Observer& observer, const Saves& plain)
      : lock_(lock), observer_(observer), plain_(plain) {}

  SavedReport write() {
    for (auto* region : observer_.regions_) numbers_.emplace(region, static_cast<int>(numbers_.size()));
    count_holders();
    for (auto* value : values_) {
      auto bytes = resident(*value);
      if (bytes) resident_.insert(value);
      lock_.discard(std::move(bytes));
    }
    write_saved();
    write_held();
    write_hints();
    report_.regions = static_cast<int>(observer_.regions_.size());
    return std::move(report_);
  }

 private:
  struct Holders {
    size_t all = 0;
    size_t graph = 0;
  };

  // Everything that the graph holds, and its number of references. Nothing may be copied before this is done.
  void count_holders() {
    visit_ = ++lock_.tape().plan_number;
    for (const auto& save : plain_) {
      count(save->tensor);
      count_leaf(save->origin);
    }
    for (auto* region : observer_.regions_) {
      marked_.insert(region->marked.begin(), region->marked.end());
      for (auto* slot = region->slots; slot; slot = slot->in_region.next) {
        slots_.push_back(slot);
        if (const auto known = observer_.slots_.find(slot); known != observer_.slots_.end()) count_leaf(known->second);
        if (slot->value)
          count(slot->value);
        else
          count(slot->kept());
      }
      for (auto* value : region->values) {
        count(value);
        auto* op = value->producer;
        if (!op || op->mark == visit_) continue;
        op->mark = visit_;
        ops_.push_back(op);
        if (op->rng) count(op->rng->base);
        for (const auto& ref : op->refs_in) {
          if (ref.value)
            count(ref.value);
          else if (ref.arg == ArgRef::kInside)
            ++holders_[ref.kept.unsafeGetTensorImpl()].graph;  // a part of what is counted
          else if (ref.kept.defined())
            count(ref.kept);
        }
      }
    }
    std::sort(ops_.begin(), ops_.end(), [](const Op* a, const Op* b) { return a->seq < b->seq; });
  }

  void count(const at::Tensor& tensor) {
    for (const auto& piece : pieces_of(tensor)) {
      auto& holders = holders_[piece.id];
      holders.all = piece.holders;
      ++holders.graph;
    }
  }

  // A leaf made and dropped inside the function lives in the node that accumulates its gradient.
  void count_leaf(const Origin& origin) {
    const auto* leaf = origin.leaf._unsafe_get_target();
    if (origin.leaf.use_count() != 1 || !leaf->has_storage() || !leaves_.insert(leaf).second) return;
    ++holders_[leaf->storage().unsafeGetStorageImpl()].graph;
  }

  void count(Value* value) {
    if (value->mark == visit_) return;
    value->mark = visit_;
    values_.push_back(value);
    auto& holders = holders_[storage_of(*value)];
    if (!value->held) {
      holders.all = value->storage.use_count();
    } else {
      holders.all = value->held.use_count();
      ++holders.graph;
    }
  }

  static c10::StorageImpl* storage_of(const Value& value) {
    return value.held ? value.held.unsafeGetStorageImpl() : value.storage._unsafe_get_target();
  }

  static c10::StorageImpl* storage_of(const at::Tensor& tensor) { return tensor.storage().unsafeGetStorageImpl(); }

  bool held_by_graph(const void* id) { return holders_[id].graph > 0; }
  bool held_by_others(const void* id) { return holders_[id].all > holders_[id].graph; }

  // --- rows

  void write_saved() {
    struct Row {
      Origin origin;
      const PlainSave* save;
      Slot* slot;
    };
    std::vector<Row> rows;
    for (const auto& save : plain_) rows.push_back({save->origin, save.get(), nullptr});
    for (auto* slot : slots_) {
      const auto known = observer_.slots_.find(slot);
      rows.push_back({known == observer_.slots_.end() ? Origin() : known->second, nullptr, slot});
    }
    std::stable_sort(rows.begin(), rows.end(),
                     [](const Row& a, const Row& b) { return a.origin.order < b.origin.order; });
    for (const auto& [origin, save, slot] : rows) {
      if (save)
        add_tensor(save->tensor, -1, origin.op,
                   std::string("saved outside every region") + source(origin, in_use(save->tensor)));
      else if (slot->value)
        add_slot(*slot, origin);
      else
        add_tensor(slot->kept(), numbers_.at(slot->region), origin.op,
                   has_plain_storage(slot->kept())
                       ? "borrowed memory, which backward reads as it is then"
                       : fmt::format("no plain storage to replay into ({})", c10::str(slot->kept().layout())));
    }
  }

  static const char* source(const Origin& origin, bool referenced_elsewhere) {
    if (origin.parameter) return " (parameter)";
    if (!origin.op.empty()) return " (result)";
    return referenced_elsewhere ? " (input)" : " (no gradient)";
  }

  bool in_use(const at::Tensor& tensor) {
    const auto pieces = pieces_of(tensor);
    return std::all_of(pieces.begin(), pieces.end(), [&](const Piece& piece) { return held_by_others(piece.id); });
  }

  void add_tensor(const at::Tensor& tensor, int region, const std::string& op, std::string why) {
    SavedTensor row{op, tensor.sizes().vec(), tensor.scalar_type(), 0, region, true};
    row.referenced_elsewhere = in_use(tensor);
    row.reason = std::move(why);
    add(std::move(row), pieces_of(tensor));
  }

  void add_slot(const Slot& slot, const Origin& origin) {
    auto* value = slot.value;
    const bool in_memory = resident_.contains(value);
    const auto* storage = storage_of(*value);
    SavedTensor row = describe(*value, slot.meta(), numbers_.at(slot.region));
    if (row.op.empty()) row.op = origin.op;
    row.kept = in_memory && held_by_graph(storage);
    row.referenced_elsewhere = in_memory && held_by_others(storage);
    row.reason = why(slot, source(origin, row.referenced_elsewhere));
    if (value->producer && !value->held) note_gain(*value, *slot.region);
    add(std::move(row), {{in_memory ? static_cast<const void*>(storage) : value,
                          in_memory ? bytes_in(*storage) : static_cast<int64_t>(value->nbytes), 0}});
  }

  SavedTensor describe(const Value& value, const TensorMeta& meta, int region) {
    const auto& shape = meta.sizes_and_strides;
    SavedTensor row{"", {shape.sizes_data(), shape.sizes_data() + shape.size()}, meta.dtype.toScalarType()};
    row.region = region;
    if (value.producer)
      row.op = value.producer->traits->qualified_name;
    else if (const auto* effect = effect_of(value))
      row.op = effect->qualified_name;
    return row;
  }

  const OpTraits* effect_of(const Value& value) const {
    const auto found = observer_.effects_.find(value.storage._unsafe_get_target());
    return found == observer_.effects_.end() ? nullptr : found->second.second;
  }

  std::string why(const Slot& slot, const char* from) {
    const auto& value = *slot.value;
    if (value.is_lost()) return "overwritten without a copy: backward will throw";
    if (value.private_copy) return "copied before it was overwritten";
    if (value.is_in_store()) return "an input of a region, in its store";
    if (value.held || !value.producer) return why_held(value, from);
    const auto again = value.offloaded ? "offloaded by policy" : "recomputed: " + operators(count_replays(slot.value));
    if (!resident_.contains(slot.value)) return again;
    if (held_by_graph(storage_of(value))) return "saved outside every region too";
    return "in memory while the caller holds it, else " + again;
  }

  std::string why_held(const Value& value, const char* from) {
    if (marked_.contains(&value)) return "kept by name or mark";
    if (value.saved) return "kept by policy";
    if (effect_of(value)) return "result of an operator with effects";
    if (!value.region) return std::string("read from outside") + from;
    return "crosses into another region";  // nothing else holds what this one could recompute
  }

  // Counts the operators that a backward which needs `value` alone would run.
  int64_t count_replays(Value* value) {
    const uint64_t number = ++lock_.tape().plan_number;
    int64_t n = 0;
    std::vector<Value*> todo{value};
    while (!todo.empty()) {
      auto* op = todo.back()->producer;
      todo.pop_back();
      if (op->mark == number) continue;
      op->mark = number;
      ++n;
      for (const auto& ref : op->refs_in)
        if (ref.value && ref.value->producer && !ref.value->offloaded && !resident_.contains(ref.value))
          todo.push_back(ref.value);
    }
    return n;
  }

  // Lists tensors that regions hold to replay operators although autograd did not save them.
  void write_held() {
    for (auto* op : ops_) {
      const std::string purpose = ", for the replay of " + op->traits->qualified_name;
      if (op->rng && costs(storage_of(op->rng->base)))
        add_tensor(op->rng->base, numbers_.at(op->region), "", "state of the generator" + purpose);
      for (const auto& ref : op->refs_in) {
        if (ref.arg == ArgRef::kInside) break;  // the outer tensor is listed
        if (ref.kept.defined()) {
          const auto pieces = pieces_of(ref.kept);
          if (std::any_of(pieces.begin(), pieces.end(), [&](const Piece& piece) { return costs(piece.id); }))
            add_tensor(ref.kept, numbers_.at(op->region), "", "no plain storage to replay into" + purpose);
        } else if (ref.value && ref.value->held && costs(storage_of(*ref.value))) {
          SavedTensor row = describe(*ref.value, ref.meta, numbers_.at(op->region));
          row.reason =
              (ref.value->private_copy ? "copied before it was overwritten" : why_held(*ref.value, "")) + purpose;
          add_held(std::move(row), *ref.value);
        }
      }
    }
    for (auto* value : values_) {
      if (!value->held || !costs(storage_of(*value))) continue;
      SavedTensor row{"", {static_cast<int64_t>(value->nbytes)}, at::kByte};
      row.region = value->region && numbers_.contains(value->region) ? numbers_.at(value->region) : -1;
      row.reason = marked_.contains(value) ? "kept by name or mark, and read by nothing" : "kept";
      add_held(std::move(row), *value);
    }
  }

  bool costs(const void* id) { return !counted_.contains(id) && !held_by_others(id); }

  void add_held(SavedTensor row, const Value& value) {
    row.kept = true;
    add(std::move(row), {{storage_of(value), bytes_in(*storage_of(value)), 0}});
  }

  void add(SavedTensor row, const std::vector<Piece>& pieces) {
    auto& sum = row.referenced_elsewhere ? report_.referenced_elsewhere_bytes
                : row.kept               ? report_.kept_bytes
                                         : report_.recomputed_bytes;
    row.shared = true;
    for (const auto& piece : pieces) {
      row.bytes += piece.bytes;
      if (!counted_.insert(piece.id).second) continue;
      row.shared = false;
      sum += piece.bytes;
    }
    report_.tensors.push_back(std::move(row));
  }

  // --- hints

  // Every region around both the recomputed value and the region that saved it gains from that.
  void note_gain(const Value& value, const Region& reader) {
    for (const auto* region = value.region; region; region = region->parent)
      if (is_within(&reader, region)) gains_.insert(region);
  }

  void write_hints() {
    std::unordered_set<const Region*> idle;
    for (auto* region : observer_.regions_) {
      if (gains_.contains(region)) continue;
      idle.insert(region);
      if (region->parent && idle.contains(region->parent)) continue;  // reported already
      bool saved = false, from_outside = true;
      for (const auto* slot : slots_) {
        if (!is_within(slot->region, region)) continue;
        saved = true;
        from_outside &= slot->value && !is_within(slot->value->region, region) && !effect_of(*slot->value);
      }
      report_.hints.push_back(fmt::format(
          "region {} recomputes nothing: {}", numbers_.at(region),
          !saved         ? "autograd saved nothing in it; call the function directly"
          : from_outside ? "all it saved was read from outside; checkpoint a larger piece"
                         : "all it computed for backward is kept; a larger piece or another policy saves memory"));
    }
  }

  TapeLock& lock_;
  Observer& observer_;
  const Saves& plain_;
  SavedReport report_;
  uint64_t visit_ = 0;
  std::unordered_map<const Region*, int> numbers_;
  std::unordered_map<const void*, Holders> holders_;  ///< of storages, and of the parts of sparse tensors
  std::vector<Value*> values_;
  std::vector<Op*> ops_;  ///< by `seq`
  std::vector<Slot*> slots_;
  std::unordered_set<const c10::TensorImpl*> leaves_;
  std::unordered_set<const Value*> marked_, resident_;
  std::unordered_set<const void*> counted_;  ///< storages, parts, and values that are not resident
  std::unordered_set<const Region*> gains_;
};

SavedReport Observer::report() {
  ReportWriter::Saves plain;  // freed after the lock
  for (const auto& weak : plain_)
    if (auto alive = weak.lock()) plain.push_back(std::move(alive));
  TapeLock lock;
  settle(lock, ThreadState::get());
  return ReportWriter(lock, *this, plain).write();
}

}  // namespace refrain::tape
