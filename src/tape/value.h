#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <c10/core/Storage.h>
#include <c10/core/TensorImpl.h>
#include <c10/util/SmallVector.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "intercept/ambient.h"
#include "intercept/op_traits.h"
#include "intercept/rng.h"
#include "intercept/tensor_meta.h"
#include "tape/offload.h"
#include "tape/storage_map.h"

/// The data model of the tape. Every field is guarded by the tape's lock (`TapeLock`) unless it says otherwise.
///
/// Ownership, all counted, no cycles:   slot -> value -> producing op -> values it read -> ...
///                                      storage map -> value (while somebody outside may still read the storage)
/// An op points back at its outputs without owning them; a region lists its slots and values without owning them.
namespace refrain::tape {

struct Op;
struct Region;
class Slot;

template <typename T>
struct ListLink {
  T* prev = nullptr;
  T* next = nullptr;
};

/// Where the bytes of a value are.
enum class Residency : uint8_t {
  kResident,     ///< in its storage while that lives, or in `held`
  kOverwritten,  ///< its storage has other bytes; `held` may have a copy, of the tape's own or of a replay
  kEvicted,      ///< its storage lives without bytes, until an operator reads it; see evict.h
  kInStore,      ///< an input of a region: in `offloaded`, and in its storage while that lives
  kInStoreOnly,  ///< the same, and its storage has other bytes
  kLost,         ///< overwritten without a copy: nobody has them
};

/// The bytes of one storage between two writes.
///
/// *leaf*: no producer and not unknown; its bytes are from outside the tape and are held while anything refers to it.
/// *unknown*: new from `empty` and not yet written by a recorded operator; becomes a leaf when first read.
struct Value {
  // Fields that eviction and recording read, together: memory is loaded by the cache line.
  int32_t refs = 0;                                   ///< slots, op arguments, bounds, and the map when `map_owns`
  int32_t locks = 0;                                  ///< operators and replay passes that use its bytes now
  Op* producer = nullptr;                             ///< owned
  Region* region = nullptr;                           ///< owned; null for leaves from outside
  c10::StorageImpl* key = nullptr;                    ///< entry in the storage map, or null
  c10::weak_intrusive_ptr<c10::StorageImpl> storage;  ///< where the bytes are or last were; never owns
  uint32_t out = 0;                                   ///< index in `producer->outs`
  uint8_t rewrites = 0;                               ///< times that its storage was overwritten by recorded operators
  Residency residency = Residency::kResident;
  bool map_owns = false;
  bool unknown = false;
  bool replaced = false;      ///< it was stale once: its bytes since are a copy that a replay made
  bool private_copy = false;  ///< `held` is the tape's own copy, so version counters say nothing about it
  bool saved = false;         ///< a policy keeps it: its bytes are held while anything refers to it, like a leaf's
  bool discard = false;       ///< other regions and autograd outside of regions recompute it rather than hold it
  bool armed = false;         ///< a raw-pointer barrier is set on the storage
  bool exposed = false;       ///< a leaf: a writable pointer was given without a copy; `hash` tells whether it was used
  bool resized = false;       ///< a leaf: its storage got other memory, so its bytes are those that are there
  bool hashed = false;        ///< `hash` is of what recorded operators read; compared before a replay reads it
  bool tagged = false;        ///< the map's reference is released when its memory is freed; under a cap only
  bool owed = false;          ///< it has other bytes now; the map's reference ends with the former ones
  bool fixed = false;         ///< will never be evicted
  bool gradient = false;      ///< a parameter's: recomputing it would take the whole step
  bool touched = false;       ///< is in `Tape::touched`
  int32_t holds = 0;          ///< references that need the bytes to stay: while > 0, `held` keeps them
  int32_t pins = 0;
  int32_t writers = 0;  ///< operators that run now and overwrite it
  int32_t needed = 0;   ///< of a source: operators behind evicted values that read it
  size_t nbytes = 0;
  Slot* slots = nullptr;  ///< slots that mean this value
  uint64_t last_use = 0;  ///< `Tape::next_seq` then
  uint32_t queued = 0;    ///< number in `Tape::candidates`, or 0
  uint32_t touched_index = 0;
  uint32_t history = 0;  ///< number among the values of the step `history_step`; see step_history.h
  uint32_t history_step = 0;

  uint32_t evicted_index = 0;
  uint32_t evicted_class = 0;  ///< in `EvictedClasses`
  int64_t demand = 0;          ///< bytes: under a limit this large it would not have been evicted
  Value* next_gone = nullptr;
  int32_t op_refs = 0;  ///< of `refs`, op arguments
  int32_t plan_index = -1;
  uint64_t mark = 0;  ///< planning scratch: valid if equal to the running plan's number
  c10::Storage held;
  std::shared_ptr<Offloaded> offloaded;  ///< its offloaded bytes, by a policy or because it is `parked`
  c10::VariableVersion counter;          ///< of the tensor that first carried the value
  uint32_t version = 0;
  uint32_t metadata_bumps = 0;  ///< version bumps by operators that changed a tensor's shape, not the bytes
  uint32_t region_index = 0;    ///< position in `region->values`
  uint64_t hash = 0;            ///< if `hashed`, of the whole storage

  explicit Value(const c10::Storage& s) : storage(s.getWeakStorageImpl()), nbytes(s.nbytes()) {}
  bool is_leaf() const { return !producer && !unknown; }
  bool is_evicted() const { return residency == Residency::kEvicted; }
  bool is_lost() const { return residency == Residency::kLost; }
  bool is_in_store() const { return residency == Residency::kInStore || residency == Residency::kInStoreOnly; }
  /// Its storage serves another value by now.
  bool is_overwritten() const {
    return residency == Residency::kOverwritten || residency == Residency::kInStoreOnly ||
           residency == Residency::kLost;
  }
  /// The storage got other bytes. What is evicted is so no longer when its memory dies.
  void note_overwritten() {
    if (residency == Residency::kResident) residency = Residency::kOverwritten;
    if (residency == Residency::kInStore) residency = Residency::kInStoreOnly;
  }
  /// Its storage has its bytes again.
  void note_restored() {
    if (residency == Residency::kOverwritten) residency = Residency::kResident;
    if (residency == Residency::kInStoreOnly) residency = Residency::kInStore;
  }
  bool version_moved() const { return counter.enabled() && counter.current_version() - version > metadata_bumps; }
};

inline c10::StorageImpl* StorageMap::key_of(const Value* value) { return value->key; }

/// A tensor argument of a recorded operator.
struct ArgRef {
  Value* value = nullptr;        ///< owned; null for scratch
  TensorMeta meta;               ///< unless `kept`
  at::Tensor kept;               ///< the tensor itself, without history, where it has no plain storage
  c10::VariableVersion counter;  ///< where the bytes are held or kept
  uint32_t version = 0;
  uint32_t metadata_bumps = 0;  ///< of `value`, when recorded
  static constexpr uint16_t kInside = 0xffff;
  uint16_t arg = 0;      ///< position in the schema; `kInside`: is inside another argument, only its version counts
  int32_t element = -1;  ///< position in a list argument, or -1
  bool holds = false;    ///< counts in `value->holds`
  bool written = false;  ///< the operator writes it
  size_t scratch_bytes = 0;
  c10::Device device = c10::kCPU;

  ArgRef() noexcept {}  // not `= default`, which would zero all of it first
  bool version_moved() const {
    const uint32_t allowed = value ? value->metadata_bumps - metadata_bumps : 0;
    return counter.enabled() && counter.current_version() - version > allowed;
  }
};

/// Where an output value appears when the operator runs.
struct OutRef {
  Value* value = nullptr;  ///< not owned; null once dead
  int16_t ret = -1;        ///< return position, or -1 if it is a written argument
  int32_t element = -1;    ///< position in a returned list, or -1
  int32_t ref = -1;        ///< index in `refs` of a written argument
};

/// A recorded operator call. Immutable after recording but for `refs` and `outs[].value`.
struct Op {
  // As in `Value`: fields that eviction reads.
  int32_t refs = 0;
  int32_t secured = 0;  ///< evicted values, and operators behind them, that need its results
  uint64_t mark = 0;
  uint64_t seq = 0;
  int64_t forward_ns = 0;
  bool lost = false;  ///< cannot be replayed: something that it read is lost; see evict.h
  bool rng_not_preserved = false;
  c10::SmallVector<ArgRef, 2> refs_in;
  c10::SmallVector<OutRef, 1> outs;
  const OpTraits* traits = nullptr;
  Region* region = nullptr;  ///< owned
  c10::DispatchKeySet keys;
  Ambient ambient;
  std::shared_ptr<const RngState> rng;
  c10::SmallVector<c10::IValue, 6> args;  ///< tensors replaced: None, or the length for one of `OpTraits::tensor_lists`

  Op() noexcept {}  // as that of `ArgRef`
};

}  // namespace refrain::tape
