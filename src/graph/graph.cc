#include "graph/graph.h"

#include <fmt/format.h>

#include <limits>
#include <utility>

namespace refrain::graph {
namespace {

constexpr int64_t kMostNumber = int64_t{1} << 53;  // JSON readers elsewhere hold no more exactly
constexpr int64_t kMostSum = int64_t{1} << 60;
constexpr size_t kMostItems = std::numeric_limits<int32_t>::max() - 1;

bool is_index(int32_t id, size_t size) { return id >= 0 && static_cast<size_t>(id) < size; }

class Checker {
 public:
  explicit Checker(const Graph& graph) : graph_(graph), end_(static_cast<OpId>(graph.ops.size())) {}

  std::string run() {
    if (graph_.ops.size() > kMostItems || graph_.values.size() > kMostItems)
      return fmt::format("{} operators, {} values; expected at most {} of each", graph_.ops.size(),
                         graph_.values.size(), kMostItems);
    if (auto defect = check_number("end_outside", graph_.end_outside); !defect.empty()) return defect;
    if (auto defect = check_number("end_gap", graph_.end_gap); !defect.empty()) return defect;
    for (size_t v = 0; v < graph_.values.size(); ++v)
      if (auto defect = check_value(static_cast<ValueId>(v)); !defect.empty())
        return fmt::format("value {}: {}", v, defect);
    heir_.assign(graph_.values.size(), kNone);
    for (size_t v = 0; v < graph_.values.size(); ++v)
      if (auto defect = check_storage(static_cast<ValueId>(v)); !defect.empty())
        return fmt::format("value {}: {}", v, defect);
    reader_.assign(graph_.values.size(), kNone);
    for (OpId i = 0; i < end_; ++i)
      if (auto defect = check_op(i); !defect.empty())
        return fmt::format("operator {} '{}': {}", i, graph_.ops[static_cast<size_t>(i)].name, defect);
    return "";
  }

 private:
  static std::string check_number(const char* what, int64_t number, int64_t least = 0) {
    if (number >= least && number <= kMostNumber) return "";
    return fmt::format("found {} {}; expected {} to {}", what, number, least, kMostNumber);
  }

  std::string check_value(ValueId id) {
    const Value& value = graph_.values[static_cast<size_t>(id)];
    if (auto defect = check_number("bytes", value.bytes); !defect.empty()) return defect;
    bytes_ += value.bytes;
    if (bytes_ > kMostSum)
      return fmt::format("all values up to it have {} bytes; expected at most {}", bytes_, kMostSum);
    if (auto defect = value.producer == kNone ? check_source(value) : check_made(id); !defect.empty()) return defect;
    if (value.death < first_place(value) || value.death > end_)
      return fmt::format("found death {}; expected {} (where it is first resident) to {} (the end)", value.death,
                         first_place(value), end_);
    return "";
  }

  std::string check_source(const Value& value) const {
    if (value.birth < 0 || value.birth > end_)
      return fmt::format("found birth {} of a source; expected 0 to {}", value.birth, end_);
    if (value.evictable) return "found a source that is evictable; a source cannot be recomputed";
    return "";
  }

  std::string check_made(ValueId id) {
    const Value& value = graph_.values[static_cast<size_t>(id)];
    if (!is_index(value.producer, graph_.ops.size()))
      return fmt::format("found producer {}; expected {} (a source) or an operator, 0 to {}", value.producer, kNone,
                         end_ - 1);
    if (std::pair(value.producer, value.output) <= last_made_)
      return fmt::format(
          "found output {} of operator {} after output {} of operator {}; expected values in the order in which "
          "operators make them",
          value.output, value.producer, last_made_.second, last_made_.first);
    last_made_ = {value.producer, value.output};
    const auto& outputs = graph_.ops[static_cast<size_t>(value.producer)].outputs;
    if (!is_index(value.output, outputs.size()) || outputs[static_cast<size_t>(value.output)] != id)
      return fmt::format("claims to be output {} of operator {}, which has another value at that position",
                         value.output, value.producer);
    return "";
  }

  std::string check_storage(ValueId id) {
    const Value& value = graph_.values[static_cast<size_t>(id)];
    const ValueId old_id = value.overwrites;
    if (old_id == kNone) return "";
    if (!is_index(old_id, graph_.values.size()) || old_id == id)
      return fmt::format("found that it overwrites {}; expected {} or another value, 0 to {}", old_id, kNone,
                         graph_.values.size() - 1);
    const Value& old = graph_.values[static_cast<size_t>(old_id)];
    if (heir_[static_cast<size_t>(old_id)] != kNone)
      return fmt::format("it overwrites value {}, as does value {}; expected one", old_id,
                         heir_[static_cast<size_t>(old_id)]);
    heir_[static_cast<size_t>(old_id)] = id;
    if (old.bytes != value.bytes)
      return fmt::format("found {} bytes, and {} of value {}, which it overwrites; expected the same storage",
                         value.bytes, old.bytes, old_id);
    if (old.death != first_place(value) || first_place(old) >= old.death)
      return fmt::format("it overwrites value {}, resident from {} until {}; expected one that is resident until {}",
                         old_id, first_place(old), old.death, first_place(value));
    return "";
  }

  std::string check_op(OpId id) {
    const Op& op = graph_.ops[static_cast<size_t>(id)];
    if (auto defect = check_number("ns", op.ns); !defect.empty()) return defect;
    ns_ += op.ns;
    if (ns_ > kMostSum) return fmt::format("all operators up to it take {} ns; expected at most {}", ns_, kMostSum);
    if (auto defect = check_number("workspace", op.workspace, -kMostNumber); !defect.empty()) return defect;
    if (auto defect = check_number("outside", op.outside); !defect.empty()) return defect;
    if (auto defect = check_number("gap", op.gap); !defect.empty()) return defect;
    for (const ValueId v : op.inputs)
      if (auto defect = check_input(id, v); !defect.empty()) return defect;
    for (size_t k = 0; k < op.outputs.size(); ++k)
      if (auto defect = check_output(id, op.outputs[k], k); !defect.empty()) return defect;
    return "";
  }

  std::string check_input(OpId id, ValueId v) {
    if (!is_index(v, graph_.values.size()))
      return fmt::format("found input {}; expected a value, 0 to {}", v,
                         static_cast<int64_t>(graph_.values.size()) - 1);
    const Value& value = graph_.values[static_cast<size_t>(v)];
    if (first_place(value) > id || id >= value.death)
      return fmt::format(
          "it reads value {}, which is resident from {} until {}; expected a value that is resident at {}", v,
          first_place(value), value.death, id);
    if (reader_[static_cast<size_t>(v)] == id)
      return fmt::format("it reads value {} twice; expected each input once", v);
    reader_[static_cast<size_t>(v)] = id;
    return "";
  }

  std::string check_output(OpId id, ValueId v, size_t position) const {
    if (!is_index(v, graph_.values.size()))
      return fmt::format("found output {}; expected a value, 0 to {}", v,
                         static_cast<int64_t>(graph_.values.size()) - 1);
    const Value& value = graph_.values[static_cast<size_t>(v)];
    if (value.producer != id || value.output != static_cast<int64_t>(position))
      return fmt::format("output {} is value {}, which claims to be output {} of operator {}", position, v,
                         value.output, value.producer);
    return "";
  }

  const Graph& graph_;
  const OpId end_;
  int64_t bytes_ = 0, ns_ = 0;
  std::pair<OpId, int32_t> last_made_{kNone, kNone};
  std::vector<ValueId> heir_;  // which value overwrites it
  std::vector<OpId> reader_;   // the last operator seen that reads it
};

}  // namespace

std::string find_defect(const Graph& graph) { return Checker(graph).run(); }

int64_t operators_ns(const Graph& graph) {
  int64_t sum = 0;
  for (const Op& op : graph.ops) sum += op.ns;
  return sum;
}

}  // namespace refrain::graph
