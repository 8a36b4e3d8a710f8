#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <thread>

#include "machine.h"
#include "refrain/memory.h"
#include "refrain/memory_cap.h"
#include "refrain/tape.h"

namespace refrain::fuzz {
namespace {

uint64_t hash_of(const std::string& s) {
  uint64_t h = 17;
  for (char c : s) h = mix(h, static_cast<unsigned char>(c));
  return h;
}

/// Of a generator: all that decides the numbers to come. Looking needs no memory of LibTorch's allocator.
struct NumbersToCome {
  explicit NumbersToCome(const at::Generator& generator) {
    auto* const own = at::check_generator<at::CPUGeneratorImpl>(generator);
    engine = own->engine().data();
    float_sample = own->next_float_normal_sample();
    double_sample = own->next_double_normal_sample();
  }
  bool operator==(const NumbersToCome& other) const {
    const auto &a = engine, &b = other.engine;
    return a.seed_ == b.seed_ && a.left_ == b.left_ && a.next_ == b.next_ && a.state_ == b.state_ &&
           float_sample == other.float_sample && double_sample == other.double_sample;
  }
  at::mt19937_data_pod engine;
  std::optional<float> float_sample;  ///< of a normal distribution, which makes two at a time
  std::optional<double> double_sample;
};

bool may_write_unseen(const Step& step) {
  const StepSpec* spec = find_step(step.kind);
  return (spec != nullptr && spec->calls == Calls::kOnce) ||
         std::any_of(step.body.begin(), step.body.end(), may_write_unseen);
}

/// A whole program: inputs, forward, backwards, records. The handles live until it is destroyed.
class ProgramRun : public Machine {
 public:
  ProgramRun(const Program& program, Mode mode, std::string* text, Surroundings* surroundings);
  void run(Outcome& outcome);

 private:
  struct Before;
  Before before_step();
  bool is_as(const Before& before);
  void run_or_be_refused(const Step& step, Outcome& outcome);
  /// In place of a step: it may have asked for some histories before it was refused.
  void leave_out();
  /// Forward, loss and backwards.
  void iterate(Outcome& outcome);
  /// What an iteration left, before the next one.
  void move_leaves(Outcome& outcome);
  void record_all(Outcome& outcome);
  void make_inputs();
  void add_input(const std::string& name, at::IntArrayRef sizes, at::ScalarType type, bool grad, bool in_pool);
  /// The loss, and the terms that it is the sum of.
  std::vector<Tensor> outputs();
  void backward(const std::vector<Tensor>& outputs, size_t number, Outcome& outcome);
  void drop_handles();
  void record(Outcome& outcome, const std::string& name, const Tensor& t, bool gradient);
  void lift() {
    if (std::exchange(may_refuse_, false)) surroundings_->lift();
  }

  const Program& program_;
  int iteration_ = 0;
  std::vector<SlotPtr> inputs_;  ///< in the pool at the start of each iteration
  std::map<std::string, SlotPtr> all_given_;
  std::unique_ptr<torch::optim::Optimizer> optimizer_;
  bool rerun_input_changed_ = false;
  bool moving_ = false;
  bool may_refuse_ = surroundings_ != nullptr;
};

ProgramRun::ProgramRun(const Program& program, Mode mode, std::string* text, Surroundings* surroundings)
    : Machine(mode, text, surroundings), program_(program) {
  auto generator = at::globalContext().defaultGenerator(at::kCPU);
  generator.set_current_seed(mix(program.seed, 1));
  for (uint64_t i = 0; i < 2; ++i) {
    generators.push_back(at::make_generator<at::CPUGeneratorImpl>(mix(program.seed, 2 + i)));
  }
  make_inputs();
  inputs_ = pool_;
  all_given_ = given_;
}

/// What a step may change, without the bytes of tensors that have a version.
struct ProgramRun::Before {
  std::vector<SlotPtr> pool;
  std::map<std::string, SlotPtr> given;
  Notes notes;
  Enclosing enclosing;
  int indent;
  std::vector<std::pair<Tensor, uint32_t>> versions;
  std::vector<std::string> buffers;  ///< statistics are written without a new version
  std::vector<NumbersToCome> generators;
};

ProgramRun::Before ProgramRun::before_step() {
  Before before{pool_, given_, *notes_, enclosing_, indent_, {}, {}, {}};
  for (const auto& slots : {pool_, leaves_, buffers_})
    for (const SlotPtr& slot : slots) before.versions.emplace_back(slot->t, static_cast<uint32_t>(slot->t._version()));
  for (const SlotPtr& buffer : buffers_) {
    const PinScope pin(buffer->t);
    before.buffers.emplace_back(static_cast<const char*>(buffer->t.const_data_ptr()), buffer->t.nbytes());
  }
  before.generators.emplace_back(at::detail::getDefaultCPUGenerator());
  for (const auto& own : generators) before.generators.emplace_back(own);
  return before;
}

bool ProgramRun::is_as(const Before& before) {
  for (const auto& [tensor, version] : before.versions)
    if (static_cast<uint32_t>(tensor._version()) != version) return false;
  const Before now = before_step();
  return now.buffers == before.buffers && now.generators == before.generators;
}

// A step that was refused before it changed anything is a step that the program does not have.
void ProgramRun::run_or_be_refused(const Step& step, Outcome& outcome) {
  Before before = before_step();
  try {
    run_step(step);
  } catch (const c10::OutOfMemoryError& error) {
    lift();
    const bool has_unsafe_views = !notes_->cut_unsafely.empty();  // they have versions of their own
    if (has_unsafe_views || may_write_unseen(step) || !is_as(before)) throw;
    outcome.refused_steps.emplace_back(iteration_, step.number);
    pool_ = std::move(before.pool);
    given_ = std::move(before.given);
    const bool made_cycle = notes_->made_cycle || notes_->histories_written > before.notes.histories_written;
    *notes_ = std::move(before.notes);
    notes_->made_cycle |= made_cycle;
    enclosing_ = before.enclosing;
    indent_ = before.indent;
    leave_out();
    line("step " + std::to_string(step.number) + " was refused memory: " + error.what_without_backtrace());
  }
}

void ProgramRun::leave_out() {
  for (const SlotPtr& slot : pool_) settle_history(slot->t);
  for (const auto& [name, slot] : given_) settle_history(slot->t);
}

void ProgramRun::add_input(const std::string& name, at::IntArrayRef sizes, at::ScalarType type, bool grad,
                           bool in_pool) {
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

void ProgramRun::make_inputs() {
  struct Kind {
    const char* name;
    std::vector<int64_t> sizes;
    at::ScalarType type;
  };
  static const std::vector<Kind> inputs = {{"v4", {4}, at::kFloat},
                                           {"m44", {4, 4}, at::kFloat},
                                           {"t234", {2, 3, 4}, at::kFloat},
                                           {"b244", {2, 4, 4}, at::kFloat},
                                           {"i2344", {2, 3, 4, 4}, at::kFloat},
                                           {"d34", {3, 4}, at::kDouble},
                                           {"c34", {3, 4}, at::kComplexFloat},
                                           {"e22", {2, 2}, at::kComplexDouble},
                                           {"one", {}, at::kFloat},
                                           {"wide", {3, 20}, at::kFloat}};
  Rng draw(mix(program_.seed, 99));
  std::fill(frame_->begin(), frame_->end(), 0.5F);
  add_input("m34", {3, 4}, at::kFloat, true, true);
  for (const Kind& kind : inputs) {
    const bool wanted = draw.chance(0.5);
    const bool grad = draw.chance(0.6);
    if (wanted) add_input(kind.name, kind.sizes, kind.type, grad, true);
  }
  add_input("ix", {3}, at::kLong, false, true);
  static const std::vector<Kind> parameters = {{"linear.weight", {4, 4}, at::kFloat},
                                               {"linear.bias", {4}, at::kFloat},
                                               {"conv.weight", {3, 3, 3, 3}, at::kFloat},
                                               {"norm.weight", {4}, at::kFloat},
                                               {"norm.bias", {4}, at::kFloat},
                                               {"table", {12, 4}, at::kFloat},
                                               {"lstm.w_ih", {16, 4}, at::kFloat},
                                               {"lstm.w_hh", {16, 4}, at::kFloat},
                                               {"lstm.b_ih", {16}, at::kFloat},
                                               {"lstm.b_hh", {16}, at::kFloat},
                                               {"sparse_table", {12, 4}, at::kFloat}};
  const std::set<std::string> needed = needs_of(program_.steps);
  for (const Kind& kind : parameters) {
    if (needed.count(kind.name) > 0) add_input(kind.name, kind.sizes, kind.type, true, false);
  }
  static const std::vector<Kind> buffers = {
      {"mean3", {3}, at::kFloat}, {"var3", {3}, at::kFloat},     {"mean4", {4}, at::kFloat},  {"var4", {4}, at::kFloat},
      {"count", {1}, at::kLong},  {"cache", {6, 4}, at::kFloat}, {"average", {4}, at::kFloat}};
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
  if (program_.iterations > 1) add_input("carried", {3, 4}, at::kFloat, false, true);
  const auto give = [&](const char* name, const Tensor& t) {
    if (needed.count(name) == 0) return;
    auto slot = std::make_shared<Slot>();
    slot->name = name;
    slot->id = hash_of(name);
    slot->t = t;
    given_[name] = slot;
  };
  give("frame", at::from_blob(frame_->data(), {3, 4}, at::kFloat));
  give("scratch", at::empty({3, 4}));
  if (needed.count("ramp") > 0) give("ramp", at::arange(70000, at::kFloat).mul_(0.37).sin_());
}

std::vector<Tensor> ProgramRun::outputs() {
  rng = Rng(mix(program_.seed, 77));
  std::vector<SlotPtr> terms;
  const int64_t wanted = 1 + rng.below(4);
  for (int64_t i = 0; i < wanted; ++i) {
    SlotPtr term =
        pick_if_any([&](const Tensor& t) { return is_numeric(t) && t.requires_grad() && (!t.is_leaf() || i == 0); });
    if (term && std::find(terms.begin(), terms.end(), term) == terms.end()) terms.push_back(term);
  }
  std::vector<Tensor> outputs(1);
  std::string names;
  for (const SlotPtr& term : terms) {
    Tensor t = term->t.is_complex() ? at::view_as_real(term->t) : term->t;
    const bool square = rng.chance(0.5);
    t = t.to(at::kDouble);
    t = square ? (t * t).sum() : (t * (0.5 + rng.uniform())).sum();
    outputs[0] = outputs[0].defined() ? outputs[0] + t : t;
    outputs.push_back(t);
    names += " " + term->name + (square ? "^2" : "");
  }
  line("loss = sum of" + names + (program_.loss_in_region ? ", in a region" + to_text(program_.loss_options) : ""));
  return outputs;
}

void ProgramRun::record(Outcome& outcome, const std::string& name, const Tensor& t, bool gradient) {
  if (t.defined() && t.is_sparse()) {
    at::NoGradGuard no_grad;
    const Tensor sorted = t.detach().coalesce();
    record(outcome, name + ".indices", sorted.indices(), gradient);
    return record(outcome, name + ".values", sorted.values(), gradient);
  }
  const std::string prefix = iteration_ == 0 ? "" : "iteration " + std::to_string(iteration_) + " ";
  Record entry{prefix + name, "undefined", "", gradient};
  if (t.defined()) {
    at::NoGradGuard no_grad;
    entry.shape = shape_of(t);
    try {
      // a tensor that LibTorch knows to be zero has a storage, but no bytes
      const Tensor plain = (t._is_zerotensor() ? t.clone() : t).detach().resolve_conj().resolve_neg().contiguous();
      const PinScope pin(plain);
      entry.bytes.assign(static_cast<const char*>(plain.const_data_ptr()), plain.nbytes());
    } catch (const c10::OutOfMemoryError& error) {
      if (may_refuse_) throw;  // at the end of an iteration
      entry.bytes = std::string("cannot be read: ") + error.what_without_backtrace();
    } catch (const c10::Error& error) {
      entry.bytes = std::string("cannot be read: ") + error.what_without_backtrace();
    } catch (const std::exception& error) {
      entry.bytes = std::string("cannot be read: ") + error.what();
    }
  }
  outcome.records.push_back(std::move(entry));
}

void ProgramRun::drop_handles() {
  line("drop all handles");
  pool_.clear();
  for (auto entry = given_.begin(); entry != given_.end();) {
    const SlotPtr& slot = entry->second;
    entry = slot->buffer || is_leaf(slot) ? std::next(entry) : given_.erase(entry);
  }
}

void ProgramRun::backward(const std::vector<Tensor>& outputs, size_t number, Outcome& outcome) {
  const Backward& step = program_.backwards[number];
  const bool last = number + 1 == program_.backwards.size();
  rng = Rng(step.seed);
  const auto which = rng.chance(0.6) ? 0 : static_cast<size_t>(rng.below(static_cast<int64_t>(outputs.size())));
  const Tensor& output = outputs[which];
  if (mode_ == Mode::kCheckpoint) {
    ++coverage().kinds[step.kind];
    coverage().of_a_term += which > 0;
  }
  const std::string of = which == 0 ? "loss" : "term " + std::to_string(which);
  if (step.kind == Backward::kBackward) {
    line("backward of " + of + (step.elsewhere ? " on another thread" : "") + (last ? "" : ", graph retained"));
    return output.backward({}, /*retain_graph=*/!last);
  }
  std::vector<Tensor> some;
  std::string names;
  for (const SlotPtr& leaf : leaves_) {
    if (!rng.chance(0.5) && !some.empty()) continue;
    some.push_back(leaf->t);
    names += " " + leaf->name;
  }
  // Not a leaf: what a region returned, say.
  const SlotPtr inner = pick_if_any([](const Tensor& t) { return t.requires_grad() && !t.is_leaf() && is_numeric(t); });
  if (inner && rng.chance(0.6)) {
    if (inner->overwritten_without_grad)
      throw std::runtime_error("the twin's gradient by a clone is of later readers alone");
    some.push_back(inner->t);
    names += " " + inner->name;
  }
  const bool twice = step.kind == Backward::kDoubleBackward;
  line((twice ? "double backward of " : "grad of ") + of + " by" + names + (last ? "" : ", graph retained"));
  const auto gradients = torch::autograd::grad({output}, some, {}, twice || !last, twice, /*allow_unused=*/true);
  Tensor penalty;
  for (size_t i = 0; i < gradients.size(); ++i) {
    const Tensor& g = gradients[i];
    record(outcome, "backward " + std::to_string(number) + " grad " + std::to_string(i), g, true);
    if (!twice || !g.defined() || !g.requires_grad() || g.is_sparse()) continue;
    const Tensor real = (g.is_complex() ? at::view_as_real(g) : g).to(at::kDouble);
    penalty = penalty.defined() ? penalty + (real * real).sum() : (real * real).sum();
  }
  if (penalty.defined()) penalty.backward({}, /*retain_graph=*/!last);
}

void ProgramRun::iterate(Outcome& outcome) {
  if (iteration_ > 0) line("iteration " + std::to_string(iteration_));
  outcome.forward_ended = false;
  for (const Step& step : program_.steps) {
    const auto& left_out = program_.left_out;
    if (std::find(left_out.begin(), left_out.end(), std::pair(iteration_, step.number)) != left_out.end())
      leave_out();
    else
      surroundings_ == nullptr ? run_step(step) : run_or_be_refused(step, outcome);
  }
  const std::vector<Tensor> made =
      program_.loss_in_region ? call(program_.loss_options, [&] { return outputs(); }) : outputs();
  outcome.forward_ended = true;
  if (!made[0].defined() || !made[0].requires_grad()) return;
  outcome.has_loss = true;
  record(outcome, "loss", made[0], false);
  if (program_.drop_handles_first) drop_handles();
  if (mode_ == Mode::kCheckpoint) ++coverage().backwards[program_.backwards.size()];
  for (size_t i = 0; i < program_.backwards.size(); ++i) {
    if (surroundings_ != nullptr) surroundings_->before_step();
    if (!program_.backwards[i].elsewhere) {
      backward(made, i, outcome);
      continue;
    }
    coverage().elsewhere += uses_library();
    outcome.unpinned = true;
    std::exception_ptr thrown;
    std::thread([&] {
      NodeNumbers::begin_thread();
      at::get_num_threads();  // without it the thread's first convolution may run with OpenMP's own number: docs/guide/pitfalls.md
      try {
        backward(made, i, outcome);
      } catch (...) {
        thrown = std::current_exception();
      }
    }).join();
    if (thrown) std::rethrow_exception(thrown);
  }
}

void ProgramRun::record_all(Outcome& outcome) {
  for (const SlotPtr& leaf : leaves_) {
    record(outcome, leaf->name, leaf->t, false);
    record(outcome, leaf->name + ".grad", leaf->t.grad(), true);
  }
  for (const SlotPtr& buffer : buffers_) record(outcome, buffer->name, buffer->t, false);
  for (const SlotPtr& slot : pool_) record(outcome, slot->name, slot->t, false);
}

void ProgramRun::move_leaves(Outcome& outcome) {
  record_all(outcome);
  rerun_input_changed_ |= std::any_of(notes_->read_by_rerun.begin(), notes_->read_by_rerun.end(),
                                      [](const Watched& t) { return t.changed(); });
  outcome.has_rerun |= !notes_->read_by_rerun.empty();
  // a backward of the next iteration may go on into the graph of this one
  const bool reaches_back =
      notes_->leaf_got_history ||
      std::any_of(buffers_.begin(), buffers_.end(), [](const SlotPtr& buffer) { return buffer->t.requires_grad(); });
  if (!reaches_back) notes_->read_by_rerun.clear();
  // the optimizer writes through `data()`, without a version
  rerun_input_changed_ |= !notes_->read_by_rerun.empty();
  notes_->cut_unsafely.clear();
  notes_->made_by_rerun.clear();
  notes_->captured.clear();
  Tensor last;
  for (const SlotPtr& slot : pool_)
    if (slot->t.scalar_type() == at::kFloat && slot->t.sizes() == at::IntArrayRef({3, 4}) && !slot->t.is_leaf())
      last = slot->t.detach();
  pool_ = inputs_;
  given_ = all_given_;
  if (last.defined()) given_["carried"]->t = last;
  if (program_.optimizer == Optimizer::kNone) return;
  if (reaches_back && !notes_->read_by_rerun.empty()) {
    outcome.optimizer_skipped =
        true;  // it writes through `data()`: nobody would see that a rerun reads the new numbers
    return;
  }
  moving_ = true;
  if (!optimizer_) {
    std::vector<Tensor> moved;
    const bool adam = program_.optimizer == Optimizer::kAdam;
    for (const SlotPtr& leaf : leaves_)
      if (!adam || (leaf->t.is_floating_point() && leaf->name != "sparse_table")) moved.push_back(leaf->t);
    if (adam)
      optimizer_ = std::make_unique<torch::optim::Adam>(moved, torch::optim::AdamOptions(0.01));
    else
      optimizer_ = std::make_unique<torch::optim::SGD>(
          moved, torch::optim::SGDOptions(0.02).momentum(program_.optimizer == Optimizer::kMomentum ? 0.9 : 0.0));
  }
  optimizer_->step();
  moving_ = false;
  for (const SlotPtr& leaf : leaves_) leaf->t.mutable_grad() = Tensor();
  line("optimizer step");
}

void ProgramRun::run(Outcome& outcome) {
  try {
    for (iteration_ = 0; iteration_ < program_.iterations; ++iteration_) {
      if (iteration_ > 0) {
        --iteration_;
        move_leaves(outcome);
        ++iteration_;
      }
      coverage().later_iterations += iteration_ > 0 && uses_library();
      const auto once = [&] { iterate(outcome); };
      surroundings_ == nullptr ? once() : surroundings_->iteration(iteration_, once);
    }
    --iteration_;
  } catch (const Refused& refused) {
    outcome.error = refused.what();
  } catch (const c10::OutOfMemoryError& error) {
    outcome.ran_out = true;
    outcome.error = error.what_without_backtrace();
  } catch (const c10::Error& error) {
    outcome.error = std::string("c10::Error: ") + error.what_without_backtrace();
  } catch (const std::exception& error) {
    outcome.error = error.what();
  }
  lift();
  outcome.failed_steps = notes_->failed_steps;
  outcome.picks = notes_->picks;
  outcome.made_cycle = notes_->made_cycle;
  outcome.leaf_got_history = notes_->leaf_got_history;
  outcome.history_written_after_rerun = notes_->history_written_after_rerun;
  outcome.threads_changed = *threads_changed_;
  outcome.unpinned |= notes_->unpinned;
  outcome.reshaped_elsewhere = notes_->reshaped_elsewhere;
  outcome.nests_deep = notes_->nests_deep;
  outcome.has_rerun |= !notes_->read_by_rerun.empty();
  outcome.rerun_input_changed =
      rerun_input_changed_ || std::any_of(notes_->read_by_rerun.begin(), notes_->read_by_rerun.end(),
                                          [](const Watched& t) { return t.changed(); });
  if (!moving_) record_all(outcome);  // else some leaves were moved and others not
  for (const SlotPtr& leaf : leaves_) leaf->t.mutable_grad() = Tensor();
  record(outcome, "default generator", at::globalContext().defaultGenerator(at::kCPU).get_state(), false);
  for (size_t i = 0; i < generators.size(); ++i) {
    record(outcome, "generator " + std::to_string(i), generators[i].get_state(), false);
  }
  if (*threads_changed_) at::set_num_threads(1);
}

}  // namespace

Outcome run(const Program& program, Mode mode, std::string* text, Surroundings* surroundings) {
  Outcome outcome;
  NodeNumbers::begin_program();
  scope_store().flush();  // what its threads hold still
  const TapeStats before = tape_stats();
  const MemoryScope memory;
  {
    ProgramRun run(program, mode, text, surroundings);
    run.run(outcome);
  }
  // The engine's ready queue keeps tensors of a failed backward, one inside a step too, until the next one starts.
  const auto note = [&](const auto& what) {
    try {
      what();
    } catch (const std::exception& error) {
      if (outcome.error.empty()) outcome.error = std::string("after its end: ") + error.what();
    }
  };
  const auto flush = [] { at::ones({1}).requires_grad_().sum().backward(); };
  note(flush);
  if (surroundings != nullptr) {
    note([&] { surroundings->end(); });
    note(flush);  // there may have been no room for it
  }
  scope_store().flush();
  const TapeStats after = tape_stats();
  outcome.leaked_bytes = memory.current();
  outcome.leaked_ops = after.live_ops - before.live_ops;
  outcome.leaked_values = after.live_values - before.live_values;
  outcome.leaked_slots = after.live_slots - before.live_slots;
  outcome.leaked_regions = after.live_regions - before.live_regions;
  return outcome;
}

}  // namespace refrain::fuzz
