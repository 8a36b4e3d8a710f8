#include "graph/json.h"

#include <fmt/format.h>

#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/json_text.h"

namespace refrain::graph {
namespace {

using Json = nlohmann::json;

constexpr int kDeepest = 64;
constexpr std::array<const char*, 3> kActionNames{"drop", "recompute", "recompute_in_place"};
constexpr size_t kLongestShown = 40;

std::string shown(const Json& json) {
  if (json.is_object()) return "an object";
  if (json.is_array()) return "a list";
  std::string text = json.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > kLongestShown) text = text.substr(0, kLongestShown) + "...";
  return text;
}

FormatError refusal(const std::string& where, const std::string& found, const std::string& expected) {
  return FormatError(fmt::format("[refrain::graph] {}: found {}; expected {}", where, found, expected));
}

/// A member and, in the frames of its readers, where it is: the path is built only for an error.
class Member {
 public:
  explicit Member(const Json& json) : json_(json) {}
  Member(const Member& parent, const char* name, const Json& json) : json_(json), parent_(&parent), name_(name) {}
  Member(const Member& parent, size_t index, const Json& json) : json_(json), parent_(&parent), index_(index) {}
  Member(const Member&) = delete;

  std::string path() const {
    const std::string before = parent_ == nullptr ? "" : parent_->path();
    if (parent_ == nullptr) return "";
    if (name_ == nullptr) return fmt::format("{}[{}]", before, index_);
    return before.empty() ? name_ : before + "." + name_;
  }

  [[noreturn]] void refuse(const std::string& expected) const {
    const std::string where = path();
    throw refusal(where.empty() ? "the document" : "`" + where + "`", shown(json_), expected);
  }

  /// Calls `read(member)` if the member exists.
  template <typename Read>
  bool with(const char* name, Read read) const {
    if (!json_.is_object()) refuse("an object");
    const auto found = json_.find(name);
    if (found == json_.end()) return false;
    read(Member(*this, name, *found));
    return true;
  }

  template <typename Read>
  void need(const char* name, Read read) const {
    if (with(name, read)) return;
    const std::string before = path();
    throw refusal("`" + (before.empty() ? name : before + "." + name) + "`", "nothing", "this member");
  }

  size_t size() const {
    if (!json_.is_array()) refuse("a list");
    return json_.size();
  }

  template <typename Read>
  void each(Read read) const {
    const size_t end = size();
    for (size_t i = 0; i < end; ++i) read(Member(*this, i, json_[i]), i);
  }

  std::string text() const {
    if (!json_.is_string()) refuse("a string");
    return json_.get<std::string>();
  }

  bool truth() const {
    if (!json_.is_boolean()) refuse("true or false");
    return json_.get<bool>();
  }

  int64_t integer() const {
    const bool is_large = json_.is_number_unsigned() &&
                          json_.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
    if (!json_.is_number_integer() || is_large) refuse("an integer from -2^63 to 2^63 - 1");
    return json_.get<int64_t>();
  }

  int32_t index() const {
    constexpr int64_t kLeast = std::numeric_limits<int32_t>::min(), kMost = std::numeric_limits<int32_t>::max();
    const int64_t number = integer();
    if (number < kLeast || number > kMost) refuse(fmt::format("an integer from {} to {}", kLeast, kMost));
    return static_cast<int32_t>(number);
  }

  void read(const char* name, int64_t& to) const {
    with(name, [&](const Member& member) { to = member.integer(); });
  }
  void read(const char* name, int32_t& to) const {
    with(name, [&](const Member& member) { to = member.index(); });
  }
  void read(const char* name, bool& to) const {
    with(name, [&](const Member& member) { to = member.truth(); });
  }
  void read(const char* name, std::string& to) const {
    with(name, [&](const Member& member) { to = member.text(); });
  }
  void read(const char* name, std::vector<int32_t>& to) const {
    with(name, [&](const Member& member) {
      to.reserve(member.size());
      member.each([&](const Member& item, size_t) { to.push_back(item.index()); });
    });
  }

 private:
  const Json& json_;
  const Member* parent_ = nullptr;
  const char* name_ = nullptr;
  size_t index_ = 0;
};

/// Returns what `make` returns, or the `FormatError` that it throws.
template <typename Make>
auto caught(Make make) -> std::variant<decltype(make()), FormatError> {
  try {
    return make();
  } catch (const FormatError& error) {
    return error;
  }
}

/// Checks the depth before parsing, so that memory stays near the text's size whatever it is.
void check_depth(std::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      in_string = c != '"';
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kDeepest)
        throw refusal(fmt::format("byte {}", i), fmt::format("lists and objects {} deep", depth),
                      fmt::format("at most {}", kDeepest));
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
}

Json parsed(std::string_view text) {
  if (text.empty()) throw refusal("the document", "no bytes", "a JSON document");
  check_depth(text);
  try {
    return Json::parse(text);
  } catch (const Json::parse_error& error) {
    throw refusal(fmt::format("byte {}", error.byte), "text that is not valid JSON", "a JSON document");
  } catch (const Json::exception& error) {  // a number that no double holds
    throw refusal("the document", error.what(), "a JSON document");
  }
}

void check_kind(const Json& document, const char* kind) {
  if (!document.is_object()) Member(document).refuse("an object");
  if (!is_kind(document, kind, kGraphVersion))
    throw refusal("the document", found_kind(document), fmt::format("kind \"{}\" version {}", kind, kGraphVersion));
}

Op read_op(const Member& member) {
  Op op;
  bool once = false;
  member.need("name", [&](const Member& name) { op.name = name.text(); });
  member.read("scope", op.scope);
  member.read("ns", op.ns);
  member.read("inputs", op.inputs);
  member.read("outputs", op.outputs);
  member.read("workspace", op.workspace);
  member.read("outside", op.outside);
  member.read("gap", op.gap);
  member.read("once", once);
  member.read("random", op.random);
  member.read("backward", op.backward);
  op.replayable = !once;
  return op;
}

Value read_value(const Member& member) {
  Value value;
  member.read("bytes", value.bytes);
  member.read("birth", value.birth);
  member.read("death", value.death);
  member.read("overwrites", value.overwrites);
  member.read("evictable", value.evictable);
  return value;
}

/// Sets producers by the operators' outputs; outputs out of range are left to `find_defect`.
void set_producers(Graph& graph) {
  for (size_t i = 0; i < graph.ops.size(); ++i) {
    const auto& outputs = graph.ops[i].outputs;
    for (size_t k = 0; k < outputs.size(); ++k) {
      if (outputs[k] < 0 || static_cast<size_t>(outputs[k]) >= graph.values.size()) continue;
      Value& value = graph.values[static_cast<size_t>(outputs[k])];
      value.producer = static_cast<OpId>(i);
      value.output = static_cast<int32_t>(k);
    }
  }
}

Graph make_graph(const Json& document) {
  const Member whole(document);
  check_kind(document, "graph");
  Graph graph;
  whole.read("model", graph.model);
  whole.read("end_outside", graph.end_outside);
  whole.read("end_gap", graph.end_gap);
  whole.need("ops", [&](const Member& ops) {
    graph.ops.reserve(ops.size());
    ops.each([&](const Member& op, size_t) { graph.ops.push_back(read_op(op)); });
  });
  whole.need("values", [&](const Member& values) {
    graph.values.reserve(values.size());
    values.each([&](const Member& value, size_t) { graph.values.push_back(read_value(value)); });
  });
  set_producers(graph);
  if (const std::string defect = find_defect(graph); !defect.empty())
    throw refusal("the document", "a graph with a defect, " + defect, "none");
  return graph;
}

Action::Kind read_action_kind(const Member& member) {
  const std::string name = member.text();
  for (size_t kind = 0; kind < kActionNames.size(); ++kind)
    if (name == kActionNames[kind]) return static_cast<Action::Kind>(kind);
  member.refuse("drop, recompute or recompute_in_place");
}

/// [place, kind, id, kind, id, ...]
void read_place(const Member& member, Schedule& schedule) {
  if (member.size() % 2 == 0) member.refuse("a list of a place and pairs of an action and its number");
  std::vector<Action>* actions = nullptr;
  Action action;
  member.each([&](const Member& item, size_t i) {
    if (i == 0) {
      const int32_t place = item.index();
      if (place < 0 || static_cast<size_t>(place) >= schedule.places.size())
        item.refuse(fmt::format("a place, 0 to {}", schedule.places.size() - 1));
      actions = &schedule.places[static_cast<size_t>(place)];
    } else if (i % 2 == 1) {
      action.kind = read_action_kind(item);
    } else {
      action.id = item.index();
      actions->push_back(action);
    }
  });
}

Schedule make_schedule(const Json& document, const Graph& graph) {
  const Member whole(document);
  check_kind(document, "schedule");
  whole.need("graph", [&](const Member& member) {
    const std::string expected = fingerprint(graph);
    if (member.text() != expected) member.refuse(fmt::format("\"{}\", the step that it is for", expected));
  });
  Schedule schedule = empty_schedule(graph);
  whole.need("places", [&](const Member& places) {
    places.each([&](const Member& place, size_t) { read_place(place, schedule); });
  });
  return schedule;
}

/// Appends members to an object, except those with their default value.
class Writer {
 public:
  explicit Writer(std::string& out) : out_(out) { out_ += '{'; }
  ~Writer() { out_ += '}'; }
  Writer(const Writer&) = delete;

  void name(const std::string& text) { fmt::format_to(key("name"), "{}", json_string(text)); }
  void number(const char* name, int64_t number, int64_t usual = 0) {
    if (number != usual) fmt::format_to(key(name), "{}", number);
  }
  void text(const char* name, const std::string& text) {
    if (!text.empty()) fmt::format_to(key(name), "{}", json_string(text));
  }
  void flag(const char* name, bool flag) {
    if (flag) fmt::format_to(key(name), "true");
  }
  void list(const char* name, const std::vector<int32_t>& ids) {
    if (!ids.empty()) fmt::format_to(key(name), "[{}]", fmt::join(ids, ","));
  }

 private:
  std::back_insert_iterator<std::string> key(const char* name) {
    fmt::format_to(std::back_inserter(out_), "{}\"{}\":", std::exchange(separator_, ","), name);
    return std::back_inserter(out_);
  }

  std::string& out_;
  const char* separator_ = "";
};

void write_op(std::string& out, const Op& op) {
  Writer writer(out);
  writer.name(op.name);
  writer.number("ns", op.ns);
  writer.text("scope", op.scope);
  writer.list("inputs", op.inputs);
  writer.list("outputs", op.outputs);
  writer.number("workspace", op.workspace);
  writer.number("outside", op.outside);
  writer.number("gap", op.gap);
  writer.flag("once", !op.replayable);
  writer.flag("random", op.random);
  writer.flag("backward", op.backward);
}

void write_value(std::string& out, const Value& value) {
  Writer writer(out);
  writer.number("bytes", value.bytes);
  if (value.producer == kNone) writer.number("birth", value.birth);
  writer.number("death", value.death);
  writer.number("overwrites", value.overwrites, kNone);
  writer.flag("evictable", value.evictable);
}

template <typename Items, typename Write>
void write_lines(std::string& out, const Items& items, Write write) {
  const char* separator = "\n";
  for (const auto& item : items) {
    out += std::exchange(separator, ",\n");
    write(out, item);
  }
}

class Hash {
 public:
  void add(uint64_t number) {
    for (int i = 0; i < 8; ++i) byte(static_cast<unsigned char>(number >> (8 * i)));
  }
  void add(const std::string& text) {
    add(text.size());
    for (const char c : text) byte(static_cast<unsigned char>(c));
  }
  void add(const std::vector<int32_t>& ids) {
    add(ids.size());
    for (const int32_t id : ids) add(static_cast<uint64_t>(id));
  }
  uint64_t value() const { return state_; }

 private:
  void byte(unsigned char c) { state_ = (state_ ^ c) * 0x100000001b3u; }
  uint64_t state_ = 0xcbf29ce484222325u;
};

}  // namespace

std::string fingerprint(const Graph& graph) {
  Hash hash;
  hash.add(graph.ops.size());
  for (const Op& op : graph.ops) {
    hash.add(op.name);
    hash.add(op.inputs);
    hash.add(op.outputs);
    hash.add(uint64_t{op.replayable} + 2 * uint64_t{op.random});
  }
  for (const Value& value : graph.values) {
    hash.add(static_cast<uint64_t>(value.bytes));
    hash.add(static_cast<uint64_t>(first_place(value)));
    hash.add(static_cast<uint64_t>(value.death));
    hash.add(static_cast<uint64_t>(value.overwrites));
    hash.add(uint64_t{value.evictable});
  }
  return fmt::format("{:016x}", hash.value());
}

std::string to_json(const Graph& graph) {
  std::string out =
      fmt::format("{{\"kind\":\"graph\",\"version\":{},\"model\":{},\"end_outside\":{},\"end_gap\":{},\n\"ops\":[",
                  kGraphVersion, json_string(graph.model), graph.end_outside, graph.end_gap);
  write_lines(out, graph.ops, write_op);
  out += "],\n\"values\":[";
  write_lines(out, graph.values, write_value);
  return out + "]}\n";
}

std::string to_json(const Graph& graph, const Schedule& schedule) {
  std::string out = fmt::format("{{\"kind\":\"schedule\",\"version\":{},\"graph\":\"{}\",\n\"places\":[", kGraphVersion,
                                fingerprint(graph));
  const char* separator = "\n";
  for (size_t p = 0; p < schedule.places.size(); ++p) {
    if (schedule.places[p].empty()) continue;
    fmt::format_to(std::back_inserter(out), "{}[{}", std::exchange(separator, ",\n"), p);
    for (const Action& action : schedule.places[p])
      fmt::format_to(std::back_inserter(out), ",\"{}\",{}", kActionNames[static_cast<size_t>(action.kind)], action.id);
    out += ']';
  }
  return out + "]}\n";
}

bool is_kind(const Json& document, const std::string& kind, int64_t version) {
  if (!document.is_object()) return false;
  const auto name = document.find("kind"), number = document.find("version");
  return name != document.end() && name->is_string() && name->get_ref<const std::string&>() == kind &&
         number != document.end() && number->is_number_integer() && *number == version;
}

std::string found_kind(const Json& document) {
  if (!document.is_object()) return shown(document);
  const auto kind = document.find("kind"), version = document.find("version");
  if (kind == document.end()) return "no `kind`";
  const std::string says = "kind " + shown(*kind);
  return version == document.end() ? says + " without a version" : says + " version " + shown(*version);
}

std::variant<Json, FormatError> parse_json(std::string_view text) {
  return caught([&] { return parsed(text); });
}

std::variant<Graph, FormatError> read_graph(std::string_view text) {
  return caught([&] { return make_graph(parsed(text)); });
}

std::variant<Graph, FormatError> graph_of(const Json& document) {
  return caught([&] { return make_graph(document); });
}

std::variant<Schedule, FormatError> read_schedule(std::string_view text, const Graph& graph) {
  return caught([&] { return make_schedule(parsed(text), graph); });
}

std::variant<Schedule, FormatError> schedule_of(const Json& document, const Graph& graph) {
  return caught([&] { return make_schedule(document, graph); });
}

}  // namespace refrain::graph
