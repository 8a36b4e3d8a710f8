#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <thread>

#include "evict/room_maker.h"
#include "machine.h"
#include "refrain/memory_budget.h"
#include "refrain/memory_cap.h"
#include "tests/budget/torture.h"
#include "tests/offload/fake_disk.h"
#include "turns.h"

/// Blocks: gradient modes, autocast, scopes, threads, and regions, with a body that looks at the program or one that is a function.
namespace refrain::fuzz {
namespace {

struct UserStop {};

bool runs_backward(const Step& step) {
  return std::string_view(step.kind) == "inner_grad" || std::any_of(step.body.begin(), step.body.end(), runs_backward);
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

}  // namespace

const OffloadStore& scope_store() {
  static auto* const disk = new refrain_test::FakeDisk;
  static const auto* const store = new OffloadStore(disk->store(OffloadOptions().min_bytes(0)));
  return *store;
}

int& open_budgets() {
  static int open = 0;
  return open;
}

namespace {

/// A budget for a block, unless one is open.
class BudgetBlock {
 public:
  explicit BudgetBlock(double fraction) {
    if (open_budgets() > 0) return;
    budget_.emplace(Budget::fraction(fraction));
    ++open_budgets();
  }
  ~BudgetBlock() {
    if (budget_) --open_budgets();
  }
  BudgetBlock(const BudgetBlock&) = delete;
  BudgetBlock& operator=(const BudgetBlock&) = delete;

 private:
  std::optional<MemoryBudget> budget_;
};

}  // namespace

void settle_history(const Tensor& t) {
  try {
    t.grad_fn();
  } catch (const c10::Error&) {  // autograd allows no use of it
  }
}

void Notes::add(const Notes& other) {
  const auto append = [](auto& to, const auto& from) { to.insert(to.end(), from.begin(), from.end()); };
  picks = mix(picks, other.picks);
  made_cycle |= other.made_cycle;
  histories_written += other.histories_written;
  leaf_got_history |= other.leaf_got_history;
  history_written_after_rerun |= other.history_written_after_rerun;
  nests_deep |= other.nests_deep;
  unpinned |= other.unpinned;
  reshaped_elsewhere |= other.reshaped_elsewhere;
  append(failed_steps, other.failed_steps);
  append(read_by_rerun, other.read_by_rerun);
  append(made_by_rerun, other.made_by_rerun);
  append(captured, other.captured);
  append(cut_unsafely, other.cut_unsafely);
}

bool is_region(const Step& step) {
  return std::strcmp(step.kind, kRegion) == 0 || std::strcmp(step.kind, kThrowingRegion) == 0;
}

Watched::Watched(const Tensor& t)
    : counter(t.unsafeGetTensorImpl()->version_counter()),
      version(counter.current_version()),
      storage(t.storage().getWeakStorageImpl()) {}

bool Watched::shares_memory(const Tensor& t) const {
  return storage._unsafe_get_target() == t.storage().unsafeGetStorageImpl();
}

void Machine::run_block(const Step& step) {
  const std::string kind = step.kind;
  line(kind + to_text(step.options) + " {");
  ++indent_;
  if (is_region(step)) {
    run_region(step);
  } else if (kind == kNoGrad) {
    at::AutoGradMode mode(false);
    run_steps(step.body);
  } else if (kind == kEnableGrad) {
    at::AutoGradMode mode(true);
    run_steps(step.body);
  } else if (kind == kAutocast) {
    Autocast autocast;
    run_steps(step.body);
  } else if (kind == kTwoThreads) {
    run_two_threads(step);
  } else if (!uses_library()) {
    run_steps(step.body);
  } else if (kind == kOffloadScope) {
    const OffloadScope scope(scope_store());
    run_steps(step.body);
  } else if (kind == kBudget) {
    const BudgetBlock budget(static_cast<double>(mix(step.seed, 3) % 5) * 0.25);
    run_steps(step.body);
  } else {
    const MemoryCap cap(int64_t{1} << 40, MemoryCapOptions().min_bytes(1));
    std::optional<refrain_test::Torture> torture;
    if (mix(step.seed, 3) % 2 == 0) torture.emplace();
    budget::RoomMaker::get().evict_all();
    run_steps(step.body);
  }
  note_exercised(step.kind);
  --indent_;
  line("}");
}

void Machine::run_region(const Step& step) {
  const RegionOptions& options = step.options;
  const Enclosing outside = enclosing_;
  if (at::GradMode::is_enabled()) {
    const bool reruns = options.rerun || (enclosing_.innermost_reruns && !options.has_policy());
    if (mode_ == Mode::kCheckpoint) {
      auto& seen = coverage();
      ++seen.regions;
      seen.with_policy += options.has_policy();
      seen.rerun += reruns;
      seen.strict += options.rerun && options.strict;
      seen.debug += options.rerun && options.debug;
      seen.run_to_the_end += options.rerun && !options.early_stop;
      seen.rerun_in_replay += reruns && enclosing_.replay;
      seen.rerun_in_rerun += reruns && enclosing_.rerun;
      seen.policy_in_rerun += options.has_policy() && enclosing_.rerun;
    }
    enclosing_.rerun |= reruns;
    enclosing_.replay |= !reruns;
    enclosing_.innermost_reruns = reruns;
  }
  try {
    if (options.rerun || (in_rerun_ && !options.has_policy())) {
      run_pure_region(step);
    } else {
      std::vector<SlotPtr> returned;
      // It reads the pool; as arguments, which go at once, they are only inputs to store.
      std::vector<Tensor> inputs;
      if (options.inputs != RegionOptions::kInMemory)
        for (const SlotPtr& slot : choose_inputs(step)) inputs.push_back(slot->t);
      std::vector<Tensor> results = call(
          options,
          [&](std::vector<Tensor> given) {
            given.clear();
            return run_body(step, returned);
          },
          std::move(inputs));
      for (size_t i = 0; i < results.size(); ++i) returned[i]->t = std::move(results[i]);
    }
  } catch (const UserStop&) {
    line("throws");
  }
  enclosing_ = outside;
}

std::vector<Tensor> Machine::run_body(const Step& step, std::vector<SlotPtr>& returned) {
  const uint64_t first_serial = serial_;
  run_steps(step.body);
  keep_survivors(step, first_serial);
  if (std::strcmp(step.kind, kThrowingRegion) == 0) throw UserStop{};
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

// --- two threads ------------------------------------------------------------------------------------------------------

void Machine::run_half(const Step& step, bool under_cap, std::exception_ptr& thrown) {
  turns_->begin(thread_);
  try {
    std::optional<CapThreadScope> scope;
    if (under_cap) scope.emplace();
    for (const Step& each : step.body)
      if (each.number % 2 == thread_) run_step(each);
  } catch (...) {
    thrown = std::current_exception();
  }
  turns_->end(thread_);
}

void Machine::run_two_threads(const Step& step) {
  // What another thread reads from under a cap must be pinned, or the thread be under it. What a graph has saved cannot be pinned.
  std::vector<std::unique_ptr<PinScope>> pins;
  const auto how = mix(step.seed, 4) % 4;
  const bool joins = uses_library() && how > 1;
  if (uses_library() && how == 1) {
    notes_->unpinned |= runs_backward(step);
    for (const SlotPtr& slot : pool_) pins.push_back(std::make_unique<PinScope>(slot->t));
    for (const auto& [name, slot] : given_) pins.push_back(std::make_unique<PinScope>(slot->t));
  } else if (!joins) {
    notes_->unpinned = true;
  }
  Turns turns;
  std::exception_ptr thrown[2];
  Machine here(*this, turns, 0), there(*this, turns, 1);
  const uint64_t first_serial = serial_;
  std::thread other([&] {
    NodeNumbers::begin_thread();
    at::get_num_threads();  // as in `ProgramRun::iterate`
    there.run_half(step, joins, thrown[1]);
  });
  here.run_half(step, false, thrown[0]);
  other.join();
  for (const Machine* machine : {&here, &there}) {
    for (const SlotPtr& slot : machine->pool_)
      if (const auto born = machine->born_.find(slot->id); born != machine->born_.end() && born->second >= first_serial)
        add(slot);
  }
  for (const auto& error : thrown)
    if (error) std::rethrow_exception(error);
}

Machine::Machine(const Machine& parent, Turns& turns, int thread)
    : generators(parent.generators),
      mode_(parent.mode_),
      text_(parent.text_),
      surroundings_(thread == 0 ? parent.surroundings_ : nullptr),
      may_be_refused_(parent.may_be_refused_ || thread == 1),  // what it reads may be an error
      pool_(parent.pool_),
      given_(parent.given_),
      leaves_(parent.leaves_),
      buffers_(parent.buffers_),
      notes_(parent.notes_),
      enclosing_(thread == 0 ? parent.enclosing_ : Enclosing()),
      indent_(parent.indent_ + thread),
      frame_(parent.frame_),
      threads_changed_(parent.threads_changed_),
      serial_(parent.serial_),
      turns_(&turns),
      thread_(thread) {}

// --- a body as a function ---------------------------------------------------------------------------------------------

// Few, because each must stay unchanged until backward; buffers never do.
std::vector<SlotPtr> Machine::choose_inputs(const Step& step) {
  std::vector<std::pair<double, size_t>> scores;
  for (size_t i = 0; i < pool_.size(); ++i) {
    const Tensor& t = pool_[i]->t;
    const auto shares = [&](const SlotPtr& buffer) { return share_storage(buffer->t, t); };
    if (!t.defined() || std::any_of(buffers_.begin(), buffers_.end(), shares)) continue;
    scores.emplace_back(draw(mix(step.seed, 7), i) * (t.requires_grad() ? 0.3 : 1), i);
  }
  std::sort(scores.begin(), scores.end(), std::greater<>());
  scores.resize(std::min<size_t>(scores.size(), 2 + mix(step.seed, 8) % 5));
  std::sort(scores.begin(), scores.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  std::vector<SlotPtr> inputs;
  for (const auto& [score, index] : scores) inputs.push_back(pool_[index]);
  return inputs;
}

void Machine::run_pure_region(const Step& step) {
  PureBody body;
  body.step = &step;
  body.mode = mode_;
  body.text = text_;
  body.surroundings = surroundings_;
  body.may_be_refused = may_be_refused_;
  body.indent = indent_;
  body.enclosing = enclosing_;
  body.frame = frame_;
  body.threads_changed = threads_changed_;
  std::vector<Tensor> arguments;
  std::string names, captured_names;
  const auto give = [&](const SlotPtr& slot, bool in_pool) {
    notes_->picks = mix(notes_->picks, slot->id);
    settle_history(slot->t);
    const bool leaf = slot->t.is_leaf() && slot->t.requires_grad() && !slot->t.is_view();
    const bool captured = leaf && mix(step.seed, slot->id) % 4 == 0;
    body.inputs.push_back({slot->id, slot->name, in_pool, captured ? slot->t : Tensor()});
    if (captured)
      notes_->captured.emplace_back(slot->t);
    else
      arguments.push_back(slot->t);
    if (at::GradMode::is_enabled()) notes_->read_by_rerun.emplace_back(slot->t);
    (captured ? captured_names : names) += " " + slot->name;
  };
  for (const SlotPtr& slot : choose_inputs(step)) give(slot, true);
  for (const std::string& name : needs_of(step.body)) {
    const auto found = given_.find(name);
    if (found != given_.end() && !found->second->buffer) give(found->second, false);
  }
  line("reads" + names + (captured_names.empty() ? "" : "; captures" + captured_names));

  std::vector<Tensor> results;
  std::exception_ptr stop;
  try {
    if (step.options.is_noexcept && !may_be_refused_) {
      coverage().noexcepts += mode_ == Mode::kCheckpoint;
      const auto quiet = [body](const std::vector<Tensor>& given, const std::vector<at::Generator>& own) noexcept {
        return body(given, own);
      };
      results = call(step.options, quiet, std::move(arguments), generators);
    } else {
      results = call(step.options, body, std::move(arguments), generators);
    }
  } catch (...) {
    stop = std::current_exception();
  }
  const PureBody::Report& report = *body.report;
  notes_->add(report.notes);
  if (stop) std::rethrow_exception(stop);
  for (size_t i = 0; i < results.size(); ++i) {
    notes_->made_by_rerun.emplace_back(results[i]);
    auto slot = std::make_shared<Slot>();
    std::tie(slot->id, slot->name) = report.results[i];
    slot->t = std::move(results[i]);
    add(slot);
  }
}

std::vector<Tensor> PureBody::operator()(const std::vector<Tensor>& arguments,
                                         const std::vector<at::Generator>& own) const {
  if (is_recomputing()) ++coverage().called_again;
  Machine machine(*this, arguments, own);
  std::vector<SlotPtr> returned;
  const auto tell = [&] {
    for (const SlotPtr& slot : returned) report->results.emplace_back(slot->id, slot->name);
    report->notes = *machine.notes_;
  };
  *report = Report();
  std::vector<Tensor> results;
  try {
    results = machine.run_body(*step, returned);
  } catch (...) {
    tell();
    throw;
  }
  tell();
  return results;
}

Machine::Machine(const PureBody& body, const std::vector<Tensor>& arguments, const std::vector<at::Generator>& own)
    : generators(own),
      mode_(body.mode),
      text_(body.text),
      surroundings_(body.surroundings),
      may_be_refused_(body.may_be_refused),
      enclosing_(body.enclosing),
      indent_(body.indent),
      frame_(body.frame),
      threads_changed_(body.threads_changed),
      in_rerun_(true) {
  size_t next = 0;
  for (const PureBody::Input& input : body.inputs) {
    auto slot = std::make_shared<Slot>();
    slot->id = input.id;
    slot->name = input.name;
    slot->t = input.captured.defined() ? input.captured : arguments[next++];
    outside_.emplace_back(slot->t);
    if (input.in_pool)
      pool_.push_back(slot);
    else
      given_[slot->name] = slot;
  }
}

}  // namespace refrain::fuzz
