#pragma once

#include <c10/core/impl/LocalDispatchKeySet.h>

#include <cstdint>
#include <optional>
#include <string>

namespace refrain::tape {

struct Globals;

/// Settings of float32 precision that an operator may read.
enum class ReadsPrecision : uint8_t { kNone, kMatmul, kConv, kRnn };

/// The state outside its arguments that a kernel below autograd may read: thread-local dispatch keys, grad mode, the
/// number of threads, the floating-point unit's control bits, and the process-wide switches.
struct Ambient {
  c10::impl::LocalDispatchKeySet keys{c10::impl::PODLocalDispatchKeySet{}};
  const Globals* globals = nullptr;  ///< default dtype and all switches of `at::Context`; never freed
  uint16_t threads = 0;              ///< `at::get_num_threads`: kernels split work by it, which shows in the last bits
  uint16_t float_control = 0;        ///< rounding, and whether denormals are flushed
  uint32_t precision : 31 = 0;  ///< four bits for each setting of float32 precision that was read, 0 where it was not
  uint32_t grad_mode : 1 = 0;

  bool operator==(const Ambient& other) const {
    return keys.included_ == other.keys.included_ && keys.excluded_ == other.keys.excluded_ &&
           globals == other.globals && threads == other.threads && float_control == other.float_control &&
           grad_mode == other.grad_mode;
  }

  /// Reads the state of this thread. Cost: about 25 ns, with a precision 40 to 100: LibTorch keeps those in a hash map.
  static Ambient now(ReadsPrecision precision);
  /// Reads all settings of precision too. Cost: about 300 ns.
  static Ambient now();

  /// Whether an operator recorded here sees the same process-wide switches in `now`; precision counts only if it was
  /// read. The thread's own part may differ: `AmbientScope` restores it.
  bool same_globals(const Ambient& now) const;
  /// Like `same_globals`, without the default dtype.
  bool same_switches(const Ambient& now) const;
};

/// Names the switch that differs, for an error message.
std::string describe_change(const Ambient& recorded, const Ambient& now);

/// Sets a number of threads and the floating-point control bits on this thread, and restores the present ones at its
/// end. The number goes through `at::set_num_threads`, so threads that start meanwhile see it too.
class ArithmeticScope {
 public:
  ArithmeticScope();
  ~ArithmeticScope();
  ArithmeticScope(const ArithmeticScope&) = delete;
  ArithmeticScope& operator=(const ArithmeticScope&) = delete;
  void set(const Ambient& recorded);

 private:
  const uint16_t threads_, float_control_;
};

/// Sets the recorded state of a thread (keys, grad mode, and what `ArithmeticScope` sets) for replayed operators, with
/// the tape's own key excluded; restores at its end.
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
  ArithmeticScope arithmetic_;
  std::optional<Ambient> current_;
};

}  // namespace refrain::tape
