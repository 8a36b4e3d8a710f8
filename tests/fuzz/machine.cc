#include "machine.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "refrain/error.h"
#include "refrain/memory_cap.h"
#include "refrain/selective.h"
#include "turns.h"

namespace refrain::fuzz {
namespace {

std::set<std::string_view>& exercised() {
  static std::set<std::string_view> kinds;
  return kinds;
}

bool says_evicted(const std::exception& error) {
  return std::string(error.what()).find("of an evicted tensor") != std::string::npos;
}

}  // namespace

Coverage& coverage() {
  static Coverage all;
  return all;
}

void note_exercised(const char* kind) { exercised().insert(kind); }

std::vector<std::string_view> exercised_kinds() { return {exercised().begin(), exercised().end()}; }

std::string shape_of(const Tensor& t) {
  std::ostringstream out;
  out << t.scalar_type() << t.sizes();
  return out.str();
}

double Machine::draw(uint64_t salt, size_t pool_index) const {
  const double weight = pool_index + 6 >= pool_.size() ? 3 : 1;
  const double u = (static_cast<double>(mix(salt, pool_[pool_index]->id) >> 11) + 1) * 0x1.0p-53;
  return std::log(u) / weight;
}

SlotPtr Machine::given(const std::string& name) {
  auto found = given_.find(name);
  if (found == given_.end()) throw Skip{};
  return found->second;
}

SlotPtr Machine::given_leaf() { return leaves_[static_cast<size_t>(rng.below(static_cast<int64_t>(leaves_.size())))]; }

Tensor& Machine::writable(const SlotPtr& slot) {
  Tensor& t = slot->t;
  is_leaf_written_ = t.is_leaf();
  if (turns_ != nullptr) return t;  // the other thread, or who started both, may have a view of it
  if (mode_ != Mode::kTwin || t.is_conj() || t.is_neg() || (t.is_leaf() && t.requires_grad())) return t;
  for (const auto& others : {pool_, buffers_, leaves_}) {
    for (const SlotPtr& other : others) {
      if (other != slot && other->t.defined() && share_storage(other->t, t)) return t;
    }
  }
  for (const Watched& cut : notes_->cut_unsafely)
    if (cut.shares_memory(t)) return t;  // autograd reads the new bytes through a view with a version of its own
  slot->overwritten_without_grad |= t.requires_grad() && !at::GradMode::is_enabled();
  at::AutoGradMode grad(true);
  replaced_.emplace_back(slot, t);
  t = at::empty_strided(t.sizes(), t.strides(), t.options().requires_grad(false)).copy_(t);
  return t;
}

bool Machine::may_write(const Tensor& t) const {
  const auto shares = [&](const Watched& watched) { return watched.shares_memory(t); };
  const auto any = [&](const std::vector<Watched>& list) { return std::any_of(list.begin(), list.end(), shares); };
  return !any(outside_) && !any(notes_->captured) && !(any(notes_->cut_unsafely) && known_to_rerun(t));
}

bool Machine::known_to_rerun(const Tensor& t) const {
  const auto shares = [&](const Watched& watched) { return watched.shares_memory(t); };
  return std::any_of(notes_->read_by_rerun.begin(), notes_->read_by_rerun.end(), shares) ||
         std::any_of(notes_->made_by_rerun.begin(), notes_->made_by_rerun.end(), shares);
}

bool Machine::is_leaf(const SlotPtr& slot) const {
  return std::find(leaves_.begin(), leaves_.end(), slot) != leaves_.end();
}

void Machine::add(const SlotPtr& slot) {
  born_[slot->id] = serial_++;
  pool_.push_back(slot);
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
    add(slot);
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
  notes_->histories_written += target->t.requires_grad();
  notes_->history_written_after_rerun |= target->t.requires_grad() && !notes_->made_by_rerun.empty();
  notes_->leaf_got_history |= is_leaf_written_ && !target->t.is_leaf();
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
  if (!slot->buffer && !is_leaf(slot)) given_.erase(slot->name);
}

void Machine::line(const std::string& text) {
  if (text_ != nullptr) *text_ += std::string(static_cast<size_t>(2 * indent_), ' ') + text + "\n";
}

void Machine::use_pointers(const std::vector<Tensor>& tensors, const std::function<void()>& use) {
  try {
    use();
  } catch (const c10::Error& error) {
    if (!says_evicted(error)) throw;
    ++coverage().pinned;
    std::vector<std::unique_ptr<PinScope>> pins;
    for (const Tensor& tensor : tensors) pins.push_back(std::make_unique<PinScope>(tensor));
    use();
  }
}

float* Machine::pointer_to(const Tensor& t) {
  float* pointer = nullptr;
  use_pointers({t}, [&] { pointer = t.data_ptr<float>(); });
  return pointer;
}

void Machine::run_steps(const std::vector<Step>& steps) {
  for (const Step& step : steps) run_step(step);
}

// Nothing was written after all.
void Machine::put_back() {
  for (const auto& [slot, before] : replaced_) slot->t = before;
}

void Machine::run_step(const Step& step) {
  if (turns_ != nullptr) turns_->next(thread_);
  if (!step.body.empty()) return run_block(step);
  const StepSpec* spec = find_step(step.kind);
  if (spec == nullptr) return;
  rng = Rng(step.seed);
  step_number_ = step.number;
  outputs_of_step_ = 0;
  detail_.clear();
  if (surroundings_ != nullptr) surroundings_->before_step();
  replaced_.clear();
  is_leaf_written_ = false;
  std::optional<ModuleScope> scope;
  if (mode_ == Mode::kCheckpoint) scope.emplace(step.number % 2 == 1 ? "odd" : "even");
  try {
    spec->run(*this);
    note_exercised(spec->kind);
  } catch (const Skip&) {
    put_back();
  } catch (const c10::OutOfMemoryError&) {
    throw;
  } catch (const Refused&) {
    throw;
  } catch (const refrain::Error&) {
    throw;
  } catch (const std::exception& error) {
    if (says_evicted(error)) throw;
    put_back();
    notes_->failed_steps.push_back(step.number);
    if (text_ == nullptr) return;
    const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
    const std::string what = torch_error != nullptr ? torch_error->what_without_backtrace() : error.what();
    line("step " + std::to_string(step.number) + " (" + step.kind + ") throws: " + what.substr(0, what.find('\n')));
  }
}

}  // namespace refrain::fuzz
