#include "evict/evicted_classes.h"

#include <utility>

namespace refrain::tape {

uint32_t EvictedClasses::root(uint32_t node) {
  while (nodes_[node].parent != node) {
    nodes_[node].parent = nodes_[nodes_[node].parent].parent;
    node = nodes_[node].parent;
  }
  return node;
}

void EvictedClasses::add(Value& value) {
  auto node = static_cast<uint32_t>(nodes_.size());
  nodes_.push_back({node, value.producer->forward_ns, 0});
  value.evicted_class = node;
  for (const auto& ref : value.producer->refs_in) {
    if (!ref.value || !ref.value->is_evicted() || ref.value == &value) continue;
    const auto other = root(ref.value->evicted_class);
    node = root(node);
    if (other == node) continue;
    nodes_[node].parent = other;
    nodes_[other].ns += nodes_[node].ns;
  }
}

void EvictedClasses::remove(Value& value) {
  nodes_[root(value.evicted_class)].ns -= value.producer->forward_ns;
  ++removed_;
}

void EvictedClasses::rebuild(const std::vector<Value*>& evicted) {
  nodes_.clear();
  removed_ = 0;
  for (auto* value : evicted)
    value->evicted_class = static_cast<uint32_t>(nodes_.size()),
    nodes_.push_back({value->evicted_class, value->producer->forward_ns, 0});
  for (auto* value : evicted)
    for (const auto& ref : value->producer->refs_in) {
      if (!ref.value || !ref.value->is_evicted()) continue;
      const auto one = root(value->evicted_class), other = root(ref.value->evicted_class);
      if (one == other) continue;
      nodes_[one].parent = other;
      nodes_[other].ns += nodes_[one].ns;
    }
}

int64_t EvictedClasses::ns_once(const Value& value, uint64_t visit) {
  auto& node = nodes_[root(value.evicted_class)];
  return std::exchange(node.visit, visit) == visit ? 0 : node.ns;
}

}  // namespace refrain::tape
