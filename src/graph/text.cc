#include "graph/text.h"

#include <fmt/format.h>

#include <limits>
#include <vector>

#include "graph/scanner.h"
#include "refrain/error.h"

namespace refrain::graph {
namespace {

constexpr OpId kDefault = -2, kAtEnd = -3;  // for lifetimes, until the whole text is read

/// A value's name where it is used.
struct Mention {
  std::string name;
  size_t at = 0;
};

struct Overwrite {
  Mention old;
  ValueId by = kNone;
};

class Parser {
 public:
  explicit Parser(std::string_view text) : in_(text) {}

  ParsedGraph run() {
    while (in_.next_line()) {
      line();
      in_.end_line();
    }
    resolve();
    if (const std::string defect = find_defect(graph()); !defect.empty())
      throw FormatError(fmt::format("found a graph with a defect: {}", defect));
    return std::move(parsed_);
  }

 private:
  struct Argument {
    Mention value;
    bool is_read = true, is_overwritten = false;
    Mention by;  // empty: by position
  };

  Graph& graph() { return parsed_.graph; }
  Value& value(ValueId id) { return graph().values[static_cast<size_t>(id)]; }

  Mention mention(const char* expected) {
    const size_t at = in_.at();
    return {in_.name(expected), at};
  }

  void line() {
    const Mention first = mention("an operator, 'source', 'model' or 'end'");
    if (first.name == "model" && in_.at_name()) {
      graph().model = in_.name("a name");
    } else if (first.name == "source" && in_.at_name()) {
      source();
    } else if (first.name == "end" && (in_.at_name() || in_.at_line_end())) {
      end();
    } else {
      step_operator(first);
    }
  }

  /// @param first  its first output or, if it has none, its name.
  void step_operator(const Mention& first) {
    std::vector<Mention> outputs{first};
    while (in_.take(',')) outputs.push_back(mention("the name of an output"));
    const bool makes = in_.take('=');
    if (!makes && outputs.size() > 1) in_.refuse("'='");
    graph().ops.emplace_back();
    op().ns = 1;
    op().name = makes ? in_.name("the name of an operator") : first.name;
    if (makes)
      for (const Mention& output : outputs) add_output(output);
    arguments();
    attributes();
  }

  Op& op() { return graph().ops.back(); }
  OpId op_id() const { return static_cast<OpId>(parsed_.graph.ops.size()) - 1; }

  ValueId add_value(const Mention& name) {
    const auto id = static_cast<ValueId>(graph().values.size());
    if (!parsed_.ids.emplace(name.name, id).second)
      in_.refuse_at(name.at, fmt::format("'{}' again", name.name), "a new name");
    Value value;
    value.bytes = 1;
    value.death = kDefault;
    graph().values.push_back(value);
    return id;
  }

  void add_output(const Mention& name) {
    const ValueId id = add_value(name);
    value(id).producer = op_id();
    value(id).output = static_cast<int32_t>(op().outputs.size());
    value(id).evictable = true;
    op().outputs.push_back(id);
  }

  void source() {
    const ValueId id = add_value(mention("a name"));
    value(id).birth = op_id() + 1;
    while (in_.at_name()) {
      const Mention key = mention("");
      in_.need('=');
      if (key.name == "bytes") {
        value(id).bytes = bytes();
      } else if (key.name == "birth") {
        value(id).birth = place();
      } else if (key.name == "death") {
        value(id).death = place();
      } else if (key.name == "over") {
        overwrites_.push_back({mention("the name of a value"), id});
      } else {
        in_.refuse_at(key.at, fmt::format("'{}'", key.name), "bytes, birth, death or over");
      }
    }
  }

  void end() {
    bool has_gap = false;
    while (in_.at_name()) {
      const Mention key = mention("");
      in_.need('=');
      if (key.name == "outside") {
        graph().end_outside = bytes();
      } else if (key.name == "gap") {
        graph().end_gap = bytes();
        has_gap = true;
      } else {
        in_.refuse_at(key.at, fmt::format("'{}'", key.name), "outside or gap");
      }
    }
    if (!has_gap) graph().end_gap = graph().end_outside;
  }

  int64_t bytes(int64_t least = 0) { return in_.number(least, int64_t{1} << 53); }

  OpId place() {
    if (!in_.at_name()) return static_cast<OpId>(in_.number(0, std::numeric_limits<int32_t>::max() - 1));
    const Mention word = mention("");
    if (word.name != "end") in_.refuse_at(word.at, fmt::format("'{}'", word.name), "a place or 'end'");
    return kAtEnd;
  }

  void arguments() {
    in_.need('(');
    reads_.emplace_back();
    if (in_.take(')')) return;
    size_t overwritten = 0;
    do {
      const Argument argument = this->argument();
      if (argument.is_read) reads_.back().push_back(argument.value);
      if (argument.is_overwritten) overwrites_.push_back({argument.value, heir(argument, overwritten++)});
    } while (in_.take(','));
    in_.need(')');
  }

  Argument argument() {
    Argument argument;
    argument.is_read = !in_.take('!');
    argument.value = mention("an argument");
    argument.is_overwritten = !argument.is_read || in_.take('!');
    if (argument.is_overwritten && in_.take('>')) argument.by = mention("the name of an output");
    return argument;
  }

  ValueId heir(const Argument& argument, size_t position) {
    if (argument.by.name.empty()) {
      if (position < op().outputs.size()) return op().outputs[position];
      in_.refuse_at(argument.value.at,
                    fmt::format("'{}' overwritten by none of {} outputs", argument.value.name, op().outputs.size()),
                    "an output for each");
    }
    const auto found = parsed_.ids.find(argument.by.name);
    if (found == parsed_.ids.end() || value(found->second).producer != op_id())
      in_.refuse_at(argument.by.at, fmt::format("'{}'", argument.by.name), "an output of this operator");
    return found->second;
  }

  void attributes() {
    bool has_gap = false;
    while (in_.at_name()) {
      const Mention key = mention("");
      if (flag(key.name)) continue;
      in_.need('=');
      has_gap = has_gap || key.name == "gap";
      attribute(key);
    }
    if (!has_gap) op().gap = op().outside;
  }

  bool flag(const std::string& name) {
    if (name == "once") return op().replayable = false, true;
    if (name == "random") return op().random = true;
    return name == "backward" && (op().backward = true);
  }

  void attribute(const Mention& key) {
    if (key.name == "ns") {
      op().ns = bytes();
    } else if (key.name == "bytes") {
      output_bytes();
    } else if (key.name == "ws") {
      op().workspace = bytes(-(int64_t{1} << 53));
    } else if (key.name == "outside") {
      op().outside = bytes();
    } else if (key.name == "gap") {
      op().gap = bytes();
    } else if (key.name == "scope") {
      op().scope = in_.name("a scope");
    } else if (key.name == "death") {
      output_deaths();
    } else if (key.name == "keep") {
      keep();
    } else {
      in_.refuse_at(key.at, fmt::format("'{}'", key.name),
                    "ns, bytes, ws, outside, gap, scope, death, keep, once, random or backward");
    }
  }

  bool is_heir(ValueId id) {
    for (auto o = overwrites_.rbegin(); o != overwrites_.rend() && value(o->by).producer == op_id(); ++o)
      if (o->by == id) return true;
    return false;
  }

  void output_bytes() {
    bool first = true;
    for (const ValueId id : op().outputs) {
      if (is_heir(id)) continue;
      if (!first) in_.need(',');
      value(id).bytes = bytes();
      first = false;
    }
    if (first) in_.refuse("no bytes, as each output overwrites something");
  }

  void output_deaths() {
    for (size_t k = 0; k < op().outputs.size(); ++k) {
      if (k > 0) in_.need(',');
      if (!in_.take('-')) value(op().outputs[k]).death = place();
    }
  }

  void keep() {
    do {
      const Mention name = mention("the name of an output");
      const auto found = parsed_.ids.find(name.name);
      if (found == parsed_.ids.end() || value(found->second).producer != op_id())
        in_.refuse_at(name.at, fmt::format("'{}'", name.name), "an output of this operator");
      value(found->second).evictable = false;
    } while (in_.take(','));
  }

  ValueId find(const Mention& mention) const {
    const auto found = parsed_.ids.find(mention.name);
    if (found == parsed_.ids.end())
      in_.refuse_at(mention.at, fmt::format("'{}'", mention.name), "the name of a source or output");
    return found->second;
  }

  void resolve() {
    const auto end = static_cast<OpId>(graph().ops.size());
    for (Value& value : graph().values)
      if (value.birth == kAtEnd) value.birth = end;
    std::vector<OpId> last_place(graph().values.size());  // the first at which nothing needs it
    for (size_t v = 0; v < last_place.size(); ++v)
      last_place[v] = graph().values[v].producer == kNone ? end : first_place(graph().values[v]);
    for (size_t i = 0; i < reads_.size(); ++i) {
      for (const Mention& read : reads_[i]) {
        const ValueId id = find(read);
        graph().ops[i].inputs.push_back(id);
        if (value(id).producer != kNone) last_place[static_cast<size_t>(id)] = static_cast<OpId>(i) + 1;
      }
    }
    for (const Overwrite& overwrite : overwrites_) take_over(overwrite.by, find(overwrite.old));
    for (size_t v = 0; v < last_place.size(); ++v) {
      OpId& death = graph().values[v].death;
      if (death == kDefault) death = last_place[v];
      if (death == kAtEnd) death = end;
    }
  }

  void take_over(ValueId id, ValueId old) {
    value(id).overwrites = old;
    if (value(id).producer != kNone) value(id).bytes = value(old).bytes;
    if (value(old).death == kDefault) value(old).death = first_place(value(id));
  }

  Scanner in_;
  ParsedGraph parsed_;
  std::vector<std::vector<Mention>> reads_;  // of each operator
  std::vector<Overwrite> overwrites_;
};

class Printer {
 public:
  explicit Printer(const Graph& graph)
      : graph_(graph), overwritten_(graph.values.size()), last_place_(graph.values.size()) {
    for (size_t v = 0; v < graph.values.size(); ++v)
      last_place_[v] = graph.values[v].producer == kNone ? end() : first_place(graph.values[v]);
    for (size_t i = 0; i < graph.ops.size(); ++i)
      for (const ValueId v : graph.ops[i].inputs)
        if (value(v).producer != kNone) last_place_[static_cast<size_t>(v)] = static_cast<OpId>(i) + 1;
    for (const Value& value : graph.values)
      if (value.overwrites != kNone) overwritten_[static_cast<size_t>(value.overwrites)] = true;
  }

  std::string run() {
    if (!graph_.model.empty()) add("model {}\n", name_text(graph_.model));
    for (size_t v = 0; v < graph_.values.size(); ++v) {
      const OpId producer = graph_.values[v].producer;
      if (producer == kNone)
        print_source(static_cast<ValueId>(v));
      else
        print_ops_before(producer + 1);
    }
    print_ops_before(end());
    if (graph_.end_outside != 0 || graph_.end_gap != 0) {
      text_ += "end";
      add_number("outside", graph_.end_outside, 0);
      add_number("gap", graph_.end_gap, graph_.end_outside);
      text_ += '\n';
    }
    return std::move(text_);
  }

 private:
  template <typename... Args>
  void add(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(text_), format, std::forward<Args>(args)...);
  }

  void add_number(const char* key, int64_t number, int64_t usual) {
    if (number != usual) add(" {}={}", key, number);
  }

  OpId end() const { return static_cast<OpId>(graph_.ops.size()); }
  const Value& value(ValueId id) const { return graph_.values[static_cast<size_t>(id)]; }
  std::string place_text(OpId place) const { return place == end() ? "end" : std::to_string(place); }
  bool has_usual_death(ValueId id) const {
    return overwritten_[static_cast<size_t>(id)] || value(id).death == last_place_[static_cast<size_t>(id)];
  }

  void print_source(ValueId id) {
    add("source {}", value_text(id));
    add_number("bytes", value(id).bytes, 1);
    if (value(id).birth != next_op_) add(" birth={}", place_text(value(id).birth));
    if (!has_usual_death(id)) add(" death={}", place_text(value(id).death));
    if (value(id).overwrites != kNone) add(" over={}", value_text(value(id).overwrites));
    text_ += '\n';
  }

  void print_ops_before(OpId before) {
    for (; next_op_ < before; ++next_op_) {
      const Op& op = graph_.ops[static_cast<size_t>(next_op_)];
      add_list(op.outputs, ", ", value_text);
      add("{}{}({})", op.outputs.empty() ? "" : " = ", name_text(op.name), arguments(op));
      print_attributes(op);
      text_ += '\n';
    }
  }

  template <typename Items, typename Text>
  void add_list(const Items& items, const char* separator, Text text) {
    const char* before = "";
    for (const auto& item : items) {
      text_ += before + text(item);
      before = separator;
    }
  }

  std::string arguments(const Op& op) const {
    std::map<ValueId, ValueId> heirs;
    for (const ValueId v : op.outputs)
      if (value(v).overwrites != kNone) heirs[value(v).overwrites] = v;
    std::string text;
    size_t overwritten = 0;
    const auto add = [&](const char* mark, ValueId id, const char* mark_after) {
      text += (text.empty() ? "" : ", ") + (mark + value_text(id)) + mark_after;
      const auto heir = heirs.find(id);
      if (heir == heirs.end()) return;
      if (op.outputs[overwritten++] != heir->second) text += ">" + value_text(heir->second);
      heirs.erase(heir);
    };
    for (const ValueId v : op.inputs) add("", v, heirs.count(v) != 0 ? "!" : "");
    while (!heirs.empty()) add("!", heirs.begin()->first, "");
    return text;
  }

  void print_attributes(const Op& op) {
    add_number("ns", op.ns, 1);
    std::vector<ValueId> sized, kept;
    bool has_usual_bytes = true, has_usual_deaths = true;
    for (const ValueId v : op.outputs) {
      if (value(v).overwrites == kNone) {
        sized.push_back(v);
        has_usual_bytes = has_usual_bytes && value(v).bytes == 1;
      }
      if (!value(v).evictable) kept.push_back(v);
      has_usual_deaths = has_usual_deaths && has_usual_death(v);
    }
    if (!has_usual_bytes) {
      text_ += " bytes=";
      add_list(sized, ",", [&](ValueId v) { return std::to_string(value(v).bytes); });
    }
    add_number("ws", op.workspace, 0);
    if (!has_usual_deaths) {
      text_ += " death=";
      add_list(op.outputs, ",", [&](ValueId v) { return has_usual_death(v) ? "-" : place_text(value(v).death); });
    }
    if (!kept.empty()) {
      text_ += " keep=";
      add_list(kept, ",", value_text);
    }
    add_number("outside", op.outside, 0);
    add_number("gap", op.gap, op.outside);
    if (!op.scope.empty()) add(" scope={}", name_text(op.scope));
    text_ +=
        std::string(op.replayable ? "" : " once") + (op.random ? " random" : "") + (op.backward ? " backward" : "");
  }

  const Graph& graph_;
  std::vector<char> overwritten_;  // at some time
  std::vector<OpId> last_place_;   // the first at which nothing needs it
  OpId next_op_ = 0;
  std::string text_;
};

}  // namespace

std::string value_text(ValueId id) { return fmt::format("v{}", id); }

ParsedGraph parse(std::string_view text) { return Parser(text).run(); }

std::string to_text(const Graph& graph) { return Printer(graph).run(); }

}  // namespace refrain::graph
