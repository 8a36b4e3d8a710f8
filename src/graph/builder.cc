#include "graph/builder.h"

#include <algorithm>
#include <utility>

namespace refrain::graph {

ValueId Builder::add(Value value, bool stays) {
  graph_.values.push_back(value);
  overwritten_.push_back(kNone);
  stays_.push_back(stays);
  return static_cast<ValueId>(graph_.values.size()) - 1;
}

ValueId Builder::source(int64_t bytes) {
  Value value;
  value.bytes = bytes;
  value.birth = last_op() + 1;
  return add(value, true);
}

ValueId Builder::source_over(ValueId old) {
  const ValueId id = source(value(old).bytes);
  value(id).overwrites = old;
  overwritten_[static_cast<size_t>(old)] = value(id).birth;
  return id;
}

Op& Builder::op(std::string name, std::vector<ValueId> inputs, int64_t ns) {
  std::sort(inputs.begin(), inputs.end());
  inputs.erase(std::unique(inputs.begin(), inputs.end()), inputs.end());
  Op& op = graph_.ops.emplace_back();
  op.name = std::move(name);
  op.inputs = std::move(inputs);
  op.ns = ns;
  return op;
}

ValueId Builder::output(int64_t bytes) {
  Op& op = graph_.ops.back();
  Value value;
  value.bytes = bytes;
  value.producer = last_op();
  value.output = static_cast<int32_t>(op.outputs.size());
  value.evictable = true;
  op.outputs.push_back(add(value, false));
  return op.outputs.back();
}

ValueId Builder::overwrite(ValueId old) {
  const ValueId id = output(value(old).bytes);
  value(id).overwrites = old;
  overwritten_[static_cast<size_t>(old)] = last_op() + 1;
  return id;
}

Graph Builder::finish() {
  const auto end = static_cast<OpId>(graph_.ops.size());
  for (size_t v = 0; v < graph_.values.size(); ++v) {
    Value& value = graph_.values[v];
    value.death = overwritten_[v] != kNone ? overwritten_[v] : stays_[v] ? end : first_place(value);
  }
  for (size_t i = 0; i < graph_.ops.size(); ++i)
    for (const ValueId v : graph_.ops[i].inputs) value(v).death = std::max(value(v).death, static_cast<OpId>(i) + 1);
  return std::move(graph_);
}

}  // namespace refrain::graph
