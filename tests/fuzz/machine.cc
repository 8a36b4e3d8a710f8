#include "machine.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/autocast_mode.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "refrain/checkpoint.h"
#include "refrain/error.h"
#include "refrain/memory.h"
#include "refrain/tape.h"

namespace refrain::fuzz {
namespace {

struct UserStop {};

uint64_t hash_of(const std::string& s) {
  uint64_t h = 17;
  for (char c : s) h = mix(h, static_cast<unsigned char>(c));
  return h;
}

std::string shape_of(const Tensor& t) {
  std::ostringstream out;
  out << t.scalar_type() << t.sizes();
  return out.str();
}

void collect_needs(const std::vector<Step>& steps, std::set<std::string>& names) {
  for (const Step& step : steps) {
    collect_needs(step.body, names);
    for (const StepSpec& spec : step_table()) {
      if (std::strcmp(spec.kind, step.kind) != 0) continue;
      std::istringstream needs(spec.needs);
      for (std::string name; std::getline(needs, name, ',');) names.insert(name);
    }
  }
}

const StepSpec* find_step(const char* kind) {
  for (const StepSpec& spec : step_table()) {
    if (std::strcmp(spec.kind, kind) == 0) return &spec;
  }
  return nullptr;
}

class Autocast {
 public:
  Autocast() : was_enabled_(at::autocast::is_autocast_enabled(at::kCPU)) {
    at::autocast::set_autocast_enabled(at::kCPU, true);
    at::autocast::increment_nesting();
  }
  ~Autocast() {
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(at::kCPU, was_enabled_);
  }

 private:
  bool was_enabled_;
};

std::set<std::string_view>& exercised() {
  static std::set<std::string_view> kinds;
  return kinds;
}

}  // namespace

bool may_overlap(const Tensor& t) {
  std::vector<std::pair<int64_t, int64_t>> dims;
  for (int64_t d = 0; d < t.dim(); ++d) {
    if (t.size(d) > 1) dims.emplace_back(t.stride(d), t.size(d));
  }
  std::sort(dims.begin(), dims.end());
  int64_t reach = 1;
  for (const auto& [stride, size] : dims) {
    if (stride < reach) return true;
    reach = stride * size;
  }
  return false;
}

bool is_writable(const Tensor& t) {
  if (!is_float(t) || may_overlap(t)) return false;
  if (!at::GradMode::is_enabled()) return true;
  if (t.is_leaf() && t.requires_grad()) return false;
  return !(t.is_view() && t._base().is_leaf() && t._base().requires_grad());
}

bool broadcasts_to(const Tensor& from, at::IntArrayRef to) {
  if (from.dim() > static_cast<int64_t>(to.size())) return false;
  for (int64_t d = 1; d <= from.dim(); ++d) {
    const int64_t n = from.size(from.dim() - d);
    if (n != 1 && n != to[to.size() - d]) return false;
  }
  return true;
}

bool broadcast_together(const Tensor& a, const Tensor& b) {
  int64_t numel = 1;
  for (int64_t d = 1; d <= std::max(a.dim(), b.dim()); ++d) {
    const int64_t n = d <= a.dim() ? a.size(a.dim() - d) : 1;
    const int64_t m = d <= b.dim() ? b.size(b.dim() - d) : 1;
    if (n != m && n != 1 && m != 1) return false;
    numel *= std::max(n, m);
  }
  return numel <= kMaxNumel;
}

const std::vector<StepSpec>& step_table() {
  static const std::vector<StepSpec> table = [] {
    std::vector<StepSpec> all;
    for (const auto& part : {compute_steps(), layer_steps(), view_steps(), write_steps(), custom_steps()}) {
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }();
  return table;
}

std::vector<std::string_view> step_kinds() {
  std::vector<std::string_view> kinds;
  for (const StepSpec& spec : step_table()) kinds.emplace_back(spec.kind);
  return kinds;
}

std::vector<std::string_view> exercised_kinds() { return {exercised().begin(), exercised().end()}; }

Machine::Machine(const Program& program, Mode mode, std::string* text) : program_(program), mode_(mode), text_(text) {
  auto generator = at::globalContext().defaultGenerator(at::kCPU);
  generator.set_current_seed(mix(program.seed, 1));
  for (uint64_t i = 0; i < 2; ++i) {
    generators.push_back(at::make_generator<at::CPUGeneratorImpl>(mix(program.seed, 2 + i)));
  }
  make_inputs();
}

void Machine::add_input(const std::string& name, at::IntArrayRef sizes, at::ScalarType type, bool grad, bool in_pool) {
  auto slot = std::make_shared<Slot>();
  slot->id = hash_of(name);
  slot->name = name;
  auto gen = at::make_generator<at::CPUGeneratorImpl>(mix(program_.seed, slot->id));
  if (type == at::kLong) {
    slot->t = at::randint(0, 12, sizes, gen, at::TensorOptions().dtype(type));
  } else {
    slot->t = at::randn(sizes, gen, at::TensorOptions().dtype(type)) * 0.7;
    slot->t.requires_grad_(grad);
  }
  if (grad) leaves_.push_back(slot);
  given_[name] = slot;
  if (in_pool) pool_.push_back(slot);
  line(name + " = input " + shape_of(slot->t) + (grad ? " requires_grad" : ""));
}

void Machine::make_inputs() {
  struct Kind {
    const char* name;
    std::vector<int64_t> sizes;
    at::ScalarType type;
  };
  static const std::vector<Kind> inputs = {
      {"v4", {4}, at::kFloat},           {"m44", {4, 4}, at::kFloat},        {"t234", {2, 3, 4}, at::kFloat},
      {"b244", {2, 4, 4}, at::kFloat},   {"i2344", {2, 3, 4, 4}, at::kFloat}, {"d34", {3, 4}, at::kDouble},
      {"c34", {3, 4}, at::kComplexFloat}, {"e22", {2, 2}, at::kComplexDouble}, {"one", {}, at::kFloat},
      {"wide", {3, 20}, at::kFloat}};
  Rng draw(mix(program_.seed, 99));
  add_input("m34", {3, 4}, at::kFloat, true, true);
  for (const Kind& kind : inputs) {
    const bool wanted = draw.chance(0.5);
    const bool grad = draw.chance(0.6);
    if (wanted) add_input(kind.name, kind.sizes, kind.type, grad, true);
  }
  add_input("ix", {3}, at::kLong, false, true);
  static const std::vector<Kind> parameters = {
      {"linear.weight", {4, 4}, at::kFloat}, {"linear.bias", {4}, at::kFloat},
      {"conv.weight", {3, 3, 3, 3}, at::kFloat},
      {"norm.weight", {4}, at::kFloat},      {"norm.bias", {4}, at::kFloat},    {"table", {12, 4}, at::kFloat},
      {"lstm.w_ih", {16, 4}, at::kFloat},    {"lstm.w_hh", {16, 4}, at::kFloat}, {"lstm.b_ih", {16}, at::kFloat},
      {"lstm.b_hh", {16}, at::kFloat}};
  std::set<std::string> needed;
  collect_needs(program_.steps, needed);
  for (const Kind& kind : parameters) {
    if (needed.count(kind.name) > 0) add_input(kind.name, kind.sizes, kind.type, true, false);
  }
  static const std::vector<Kind> buffers = {{"mean3", {3}, at::kFloat},  {"var3", {3}, at::kFloat},
                                            {"mean4", {4}, at::kFloat},  {"var4", {4}, at::kFloat},
                                            {"count", {1}, at::kLong},   {"cache", {6, 4}, at::kFloat},
                                            {"average", {4}, at::kFloat}};
  for (const Kind& kind : buffers) {
    if (needed.count(kind.name) == 0) continue;
    add_input(kind.name, kind.sizes, kind.type, false, false);
    SlotPtr slot = given_[kind.name];
    slot->buffer = true;
    if (kind.name[0] == 'v') slot->t.abs_();
    buffers_.push_back(slot);
    // Buffers are read by ordinary steps too.
    if (kind.type != at::kLong && draw.chance(0.4)) pool_.push_back(slot);
  }
}

SlotPtr Machine::given(const std::string& name) {
  auto found = given_.find(name);
  if (found == given_.end()) throw Skip{};
  return found->second;
}

SlotPtr Machine::given_leaf() { return leaves_[static_cast<size_t>(rng.below(static_cast<int64_t>(leaves_.size())))]; }

Tensor& Machine::writable(const SlotPtr& slot) {
  Tensor& t = slot->t;
  if (mode_ != Mode::kTwin || t.is_conj() || t.is_neg() || (t.is_leaf() && t.requires_grad())) return t;
  for (const auto& others : {pool_, buffers_, leaves_}) {
    for (const SlotPtr& other : others) {
      if (other != slot && other->t.defined() && other->t.is_alias_of(t)) return t;
    }
  }
  at::AutoGradMode grad(true);
  t = at::empty_strided(t.sizes(), t.strides(), t.options().requires_grad(false)).copy_(t);
  return t;
}

void Machine::emit_some(const char* op, Operands operands, const std::vector<Tensor>& outs, double keep) {
  std::string names;
  for (const Tensor& out : outs) {
    const int index = outputs_of_step_++;
    if (!out.defined() || out.numel() > kMaxNumel || !rng.chance(keep)) {
      names += names.empty() ? "_" : ", _";
      continue;
    }
    auto slot = std::make_shared<Slot>();
    slot->id = mix(static_cast<uint64_t>(step_number_), 1000 + static_cast<uint64_t>(index));
    slot->t = out;
    slot->name = "s" + std::to_string(step_number_) + (index == 0 ? "" : "." + std::to_string(index));
    if (text_ != nullptr) names += (names.empty() ? "" : ", ") + slot->name + ":" + shape_of(out);
    born_[slot->id] = serial_++;
    pool_.push_back(std::move(slot));
  }
  if (text_ == nullptr) return;
  std::string args;
  for (const SlotPtr& operand : operands) {
    if (operand) args += (args.empty() ? "" : ", ") + operand->name;
  }
  line(names + " = " + op + "(" + args + ")" + (detail_.empty() ? "" : "  # " + detail_));
  detail_.clear();
}

void Machine::wrote(const char* op, const SlotPtr& target, Operands operands) {
  if (text_ == nullptr) return;
  std::string args;
  for (const SlotPtr& operand : operands) {
    if (operand) args += (args.empty() ? "" : ", ") + operand->name;
  }
  line(target->name + "." + op + "(" + args + ")" + (detail_.empty() ? "" : "  # " + detail_));
  detail_.clear();
}

void Machine::drop(const SlotPtr& slot) {
  line("drop " + slot->name);
  pool_.erase(std::remove(pool_.begin(), pool_.end(), slot), pool_.end());
  if (!slot->buffer && std::find(leaves_.begin(), leaves_.end(), slot) == leaves_.end()) given_.erase(slot->name);
}

void Machine::line(const std::string& text) {
  if (text_ != nullptr) *text_ += std::string(static_cast<size_t>(2 * indent_), ' ') + text + "\n";
}

void Machine::run_steps(const std::vector<Step>& steps) {
  for (const Step& step : steps) run_step(step);
}

void Machine::run_step(const Step& step) {
  if (!step.body.empty()) return run_block(step);
  const StepSpec* spec = find_step(step.kind);
  if (spec == nullptr) return;
  rng = Rng(step.seed);
  step_number_ = step.number;
  outputs_of_step_ = 0;
  detail_.clear();
  try {
    spec->run(*this);
    exercised().insert(spec->kind);
  } catch (const Skip&) {
  } catch (const c10::OutOfMemoryError&) {
    throw;
  } catch (const Refused&) {
    throw;
  } catch (const refrain::Error&) {
    throw;
  } catch (const std::exception& error) {
    failed_steps_.push_back(step.number);
    if (text_ == nullptr) return;
    const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
    const std::string what = torch_error != nullptr ? torch_error->what_without_backtrace() : error.what();
    line("step " + std::to_string(step.number) + " (" + step.kind + ") throws: " + what.substr(0, what.find('\n')));
  }
}

void Machine::run_block(const Step& step) {
  const std::string kind = step.kind;
  line(kind + " {");
  ++indent_;
  if (kind == kRegion || kind == kThrowingRegion) {
    run_region(step);
  } else if (kind == kNoGrad) {
    at::AutoGradMode mode(false);
    run_steps(step.body);
  } else if (kind == kEnableGrad) {
    at::AutoGradMode mode(true);
    run_steps(step.body);
  } else {
    Autocast autocast;
    run_steps(step.body);
  }
  --indent_;
  line("}");
}

void Machine::keep_survivors(const Step& step, uint64_t first_serial) {
  std::string names;
  const SlotPtr last = pool_.empty() ? nullptr : pool_.back();
  std::vector<SlotPtr> kept;
  for (const SlotPtr& slot : pool_) {
    auto born = born_.find(slot->id);
    const bool inside = born != born_.end() && born->second >= first_serial;
    if (inside && slot != last && mix(step.seed, slot->id) % 100 >= 30) continue;
    if (inside) names += " " + slot->name;
    kept.push_back(slot);
  }
  pool_.swap(kept);
  line("return" + names);
}

void Machine::run_region(const Step& step) {
  const bool throws = std::strcmp(step.kind, kThrowingRegion) == 0;
  const uint64_t first_serial = serial_;
  std::vector<SlotPtr> returned;
  auto body = [&]() -> std::vector<Tensor> {
    run_steps(step.body);
    keep_survivors(step, first_serial);
    if (throws) throw UserStop{};
    // The results leave by the return value alone.
    std::vector<Tensor> results;
    for (const SlotPtr& slot : pool_) {
      auto born = born_.find(slot->id);
      if (born == born_.end() || born->second < first_serial) continue;
      returned.push_back(slot);
      results.push_back(std::move(slot->t));
      slot->t = Tensor();
    }
    return results;
  };
  try {
    std::vector<Tensor> results = mode_ == Mode::kCheckpoint ? refrain::checkpoint(body) : body();
    for (size_t i = 0; i < results.size(); ++i) returned[i]->t = std::move(results[i]);
  } catch (const UserStop&) {
    line("throws");
  }
}

Tensor Machine::loss() {
  rng = Rng(mix(program_.seed, 77));
  std::vector<SlotPtr> terms;
  const int64_t wanted = 1 + rng.below(4);
  for (int64_t i = 0; i < wanted; ++i) {
    SlotPtr term = pick_if_any([&](const Tensor& t) {
      return is_numeric(t) && t.requires_grad() && (!t.is_leaf() || i == 0);
    });
    if (term && std::find(terms.begin(), terms.end(), term) == terms.end()) terms.push_back(term);
  }
  Tensor total;
  std::string names;
  for (const SlotPtr& term : terms) {
    Tensor t = term->t.is_complex() ? at::view_as_real(term->t) : term->t;
    const bool square = rng.chance(0.5);
    t = t.to(at::kDouble);
    t = square ? (t * t).sum() : (t * (0.5 + rng.uniform())).sum();
    total = total.defined() ? total + t : t;
    names += " " + term->name + (square ? "^2" : "");
  }
  line("loss = sum of" + names);
  return total;
}

void Machine::record(Outcome& outcome, const std::string& name, const Tensor& t, bool gradient) {
  Record entry{name, "undefined", "", gradient};
  if (t.defined()) {
    at::NoGradGuard no_grad;
    const Tensor plain = t.detach().resolve_conj().resolve_neg().contiguous();
    entry.shape = shape_of(plain);
    entry.bytes.assign(static_cast<const char*>(plain.const_data_ptr()), plain.nbytes());
  }
  outcome.records.push_back(std::move(entry));
}

void Machine::end(const Tensor& loss, Outcome& outcome) {
  static const char* const endings[] = {"loss.backward()", "backward twice, graph retained", "grad of some",
                                        "grad of some, then backward", "double backward", "dropped without backward"};
  const std::string ending = endings[static_cast<int>(program_.ending)];
  line(ending + (program_.drop_handles_first ? ", handles dropped" : ""));
  std::vector<Tensor> some;
  rng = Rng(mix(program_.seed, 78));
  for (const SlotPtr& leaf : leaves_) {
    if (rng.chance(0.5) || some.empty()) some.push_back(leaf->t);
  }
  // Not a leaf: what a region returned, say.
  const SlotPtr inner = pick_if_any([](const Tensor& t) { return t.requires_grad() && !t.is_leaf() && is_numeric(t); });
  const bool has_inner = inner && !program_.drop_handles_first && rng.chance(0.6);
  if (has_inner) some.push_back(inner->t);
  if (program_.drop_handles_first) {
    pool_.clear();
    for (auto entry = given_.begin(); entry != given_.end();) {
      const SlotPtr& slot = entry->second;
      const bool stays = slot->buffer || std::find(leaves_.begin(), leaves_.end(), slot) != leaves_.end();
      entry = stays ? std::next(entry) : given_.erase(entry);
    }
  }
  auto grad = [&](bool retain, bool create) {
    return torch::autograd::grad({loss}, some, {}, retain, create, /*allow_unused=*/true);
  };
  switch (program_.ending) {
    case Ending::kBackward:
      loss.backward();
      break;
    case Ending::kBackwardTwice:
      loss.backward({}, /*retain_graph=*/true);
      loss.backward();
      break;
    case Ending::kGradOfSome: {
      int i = 0;
      for (const Tensor& g : grad(false, false)) record(outcome, "grad() " + std::to_string(i++), g, true);
      break;
    }
    case Ending::kGradThenBackward: {
      int i = 0;
      for (const Tensor& g : grad(true, false)) record(outcome, "grad() " + std::to_string(i++), g, true);
      loss.backward();
      break;
    }
    case Ending::kDoubleBackward: {
      Tensor penalty;
      int i = 0;
      for (const Tensor& g : grad(true, true)) {
        record(outcome, "grad() " + std::to_string(i++), g, true);
        if (!g.defined() || !g.requires_grad()) continue;
        const Tensor real = (g.is_complex() ? at::view_as_real(g) : g).to(at::kDouble);
        penalty = penalty.defined() ? penalty + (real * real).sum() : (real * real).sum();
      }
      if (penalty.defined()) penalty.backward();
      break;
    }
    case Ending::kDropped:
      break;
  }
}

void Machine::run(Outcome& outcome) {
  Tensor total;
  try {
    run_steps(program_.steps);
    if (program_.loss_in_region && mode_ == Mode::kCheckpoint) {
      total = refrain::checkpoint([&] { return loss(); });
    } else {
      total = loss();
    }
    outcome.has_loss = total.defined() && total.requires_grad();
    if (outcome.has_loss) {
      record(outcome, "loss", total, false);
      end(total, outcome);
    }
  } catch (const Refused& refused) {
    outcome.error = refused.what();
  } catch (const c10::Error& error) {
    outcome.error = std::string("c10::Error: ") + error.what_without_backtrace();
  } catch (const std::exception& error) {
    outcome.error = error.what();
  }
  outcome.failed_steps = failed_steps_;
  outcome.picks = picks_;
  for (const SlotPtr& leaf : leaves_) {
    record(outcome, leaf->name, leaf->t, false);
    record(outcome, leaf->name + ".grad", leaf->t.grad(), true);
    leaf->t.mutable_grad() = Tensor();
  }
  for (const SlotPtr& buffer : buffers_) record(outcome, buffer->name, buffer->t, false);
  for (const SlotPtr& slot : pool_) record(outcome, slot->name, slot->t, false);
  record(outcome, "default generator", at::globalContext().defaultGenerator(at::kCPU).get_state(), false);
  for (size_t i = 0; i < generators.size(); ++i) {
    record(outcome, "generator " + std::to_string(i), generators[i].get_state(), false);
  }
}

Outcome run(const Program& program, Mode mode, std::string* text) {
  Outcome outcome;
  const TapeStats before = tape_stats();
  const MemoryScope memory;
  {
    Machine machine(program, mode, text);
    machine.run(outcome);
  }
  if (!outcome.error.empty()) {
    // The engine's ready queue keeps tensors of a failed backward until the next one starts.
    at::ones({1}).requires_grad_().sum().backward();
  }
  const TapeStats after = tape_stats();
  outcome.leaked_bytes = memory.current();
  outcome.leaked_ops = after.live_ops - before.live_ops;
  outcome.leaked_values = after.live_values - before.live_values;
  outcome.leaked_slots = after.live_slots - before.live_slots;
  outcome.leaked_regions = after.live_regions - before.live_regions;
  return outcome;
}

}  // namespace refrain::fuzz
