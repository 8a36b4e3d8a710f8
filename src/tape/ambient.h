#pragma once

#include <c10/core/impl/LocalDispatchKeySet.h>

#include <cstdint>
#include <optional>
#include <string>

namespace refrain::tape {

/// The state outside its arguments that a kernel below autograd may read: thread-local dispatch keys, grad mode, and
/// process-wide switches packed into a word (default dtype, mkldnn, deterministic, precision, attention backends).
struct Ambient {
  c10::impl::LocalDispatchKeySet keys{c10::impl::PODLocalDispatchKeySet{}};
  uint64_t globals = 0;
  bool grad_mode = false;

  bool operator==(const Ambient& other) const {
    return keys.included_ == other.keys.included_ && keys.excluded_ == other.keys.excluded_ &&
           globals == other.globals && grad_mode == other.grad_mode;
  }

  /// This thread, now. @param precision read the float32 matmul precision too: it costs more than all else together, and
  /// only operators that multiply matrices look at it. Cost: about 30 ns, with `precision` 120.
  static Ambient now(bool precision);

  /// Whether an operator recorded here sees the same switches in `now`; precision counts only if it was read.
  bool same_globals(const Ambient& now) const;
};

/// Which switch differs, in words for an error message.
std::string describe_change(const Ambient& recorded, const Ambient& now);

/// Puts recorded keys and grad mode in force for replayed operators, with the tape's own key excluded; restores at the end.
class AmbientScope {
 public:
  AmbientScope();
  ~AmbientScope();
  AmbientScope(const AmbientScope&) = delete;
  AmbientScope& operator=(const AmbientScope&) = delete;
  void set(const Ambient& recorded);

 private:
  c10::impl::LocalDispatchKeySet saved_keys_;
  bool saved_grad_mode_;
  std::optional<Ambient> current_;
};

}  // namespace refrain::tape
