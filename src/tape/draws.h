#pragma once

#include <ATen/core/Generator.h>

#include <memory>
#include <mutex>
#include <vector>

#include "intercept/op_traits.h"
#include "intercept/rng.h"
#include "tape/open_scopes.h"

namespace refrain::tape {

/// What a function drew from random generators: the state of the generator before each random operator. The rerun of
/// the function draws each from the same state, and each time the generator is restored at once: other threads may draw
/// from it meanwhile, other functions may be rerun, and all get the numbers they would have got.
///
/// A function may also handle a generator itself (`manual_seed`, `set_state`, numbers drawn without an operator). That
/// shows in a state which no operator left. Then its generators are set for the whole rerun, and restored at its end;
/// another thread that draws from them meanwhile draws other numbers.
/// Threads: one at a time; const members, any.
class Draws {
 public:
  /// @param all  note what is drawn from any generator, rather than from those of `add_generator` only.
  explicit Draws(bool all) : all_(all) {}

  /// Adds a generator that the rerun begins with in its present state. Takes `rng_mutex`.
  void add_generator(const at::Generator& generator);
  /// Adds the default generators of the CPU and of every accelerator in use. Cost: 5 KB, about 1 us.
  void add_default_generators();
  /// Notes that the function has returned, on the thread that called it, whose scopes without it are `outer`. Takes
  /// `rng_mutex`.
  void ended(const std::vector<OpenScope>& outer) noexcept;
  bool any() const { return all_ || !known_.empty(); }

 private:
  friend class DrawScope;
  friend class SecondDraws;

  struct Known {
    std::shared_ptr<const RngState> first;  ///< when the function was called, or at the first draw
    std::shared_ptr<const RngState> last;   ///< as the last operator left it
    bool at_start;
  };
  bool expects(const at::Generator& generator, const OpTraits& op) const;
  bool is_ahead() const { return ahead_ && !handles_ && next_ >= again_->drawn_.size(); }
  Known* find(const at::Generator& generator);
  void draws(const std::shared_ptr<const RngState>& before, bool put_back);
  void drew(const std::shared_ptr<const RngState>& before, const OpTraits& op,
            const std::shared_ptr<const RngState>& after);

  const bool all_;
  bool handles_ = false;  ///< the function handles a generator itself
  std::vector<Known> known_;
  struct Drawn {
    std::shared_ptr<const RngState> state;
    const OpTraits* op;
  };
  std::vector<Drawn> drawn_;
  const OpTraits* mixed_ = nullptr;  ///< an operator that drew while another thread drew from its generator

  // of a rerun
  const Draws* again_ = nullptr;
  size_t next_ = 0;
  uint64_t operators_ = 0;  ///< that may draw: beginnings and ends
  bool ahead_ = false;      ///< it may run further than the first call has
};

/// Installs the `Draws` of a rerun, on its thread, while alive.
class SecondDraws {
 public:
  /// @param ahead  the first call is under way, and this one may run further than that has. What it draws there is
  ///               restored, for the first to draw.
  /// @throws CheckpointError  if it is unknown what the first call drew.
  SecondDraws(const Draws& first, bool ahead);
  ~SecondDraws();
  SecondDraws(const SecondDraws&) = delete;
  SecondDraws& operator=(const SecondDraws&) = delete;
  Draws* get() { return &draws_; }

 private:
  Draws draws_;
  std::vector<RngState> present_;
  std::vector<RngState> ahead_;  ///< states to restore, where the rerun runs further than the first call
  uint64_t draws_before_ = 0;
};

/// Surrounds one operator that may draw: holds `rng_mutex`, sets the state that the first call drew from, and restores
/// the generator.
class DrawScope {
 public:
  /// @param open  the scopes of this thread.
  DrawScope(const std::vector<OpenScope>& open, const at::Generator& generator, const OpTraits& op);
  ~DrawScope();
  DrawScope(const DrawScope&) = delete;
  DrawScope& operator=(const DrawScope&) = delete;

  const std::shared_ptr<const RngState>& before() const { return before_; }
  /// Lets others draw while the operator runs, unless this is a rerun and the operator drew in the first call.
  void unlock();
  /// Notes that the operator has run. @return whether it drew: one without the tag may have drawn nothing; then nothing
  /// is noted.
  /// @throws CheckpointError  in a rerun, if another thread seeded the generator meanwhile.
  bool finish();

 private:
  const std::vector<OpenScope>& open_;
  const OpTraits& op_;
  std::unique_lock<OrderedMutex> lock_;
  uint64_t draws_before_;
  uint64_t seed_;
  bool mixed_;  ///< an operator on another thread may draw meanwhile
  bool unlocked_ = false;
  Draws* second_ = nullptr;  ///< of the rerun that this thread is in, if the first call drew here
  std::shared_ptr<const RngState> before_;
  at::Tensor present_;

  void relock();
};

}  // namespace refrain::tape
