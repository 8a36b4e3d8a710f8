#include "intercept/ambient.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <c10/core/DefaultDtype.h>
#include <c10/core/GradMode.h>

#include <array>
#include <atomic>
#include <cstring>
#include <mutex>
#include <vector>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif
#include "intercept/key.h"

namespace refrain::tape {
namespace {

struct Switch {
  const char* name;
  int64_t (*read)(at::Context& context);
};

int64_t priority_order(at::Context& context) {
  int64_t number = 0;
  for (const auto backend : context.sDPPriorityOrder()) number = number * 8 + static_cast<int64_t>(backend);
  return number;
}

// LibTorch before 2.13 has no such switch.
template <typename Context>
int64_t cudnn_depthwise_kernel(Context& context) {
  if constexpr (requires { context.cudnnDepthwiseKernel(); })
    return static_cast<int64_t>(context.cudnnDepthwiseKernel());
  else
    return 0;
}

// Only switches that change what a kernel computes. Names as in the functions that set them.
constexpr Switch kSwitches[] = {
    {"mkldnn", [](at::Context& c) { return int64_t{c.userEnabledMkldnn()}; }},
    {"deterministic mkldnn", [](at::Context& c) { return int64_t{c.deterministicMkldnn()}; }},
    {"cudnn", [](at::Context& c) { return int64_t{c.userEnabledCuDNN()}; }},
    {"cudnn benchmark", [](at::Context& c) { return int64_t{c.benchmarkCuDNN()}; }},
    {"limit of the cudnn benchmark", [](at::Context& c) { return int64_t{c.benchmarkLimitCuDNN()}; }},
    {"deterministic cudnn", [](at::Context& c) { return int64_t{c.deterministicCuDNN()}; }},
    {"cudnn depthwise kernel", &cudnn_depthwise_kernel<at::Context>},
    {"immediate miopen", [](at::Context& c) { return int64_t{c.immediateMiopen()}; }},
    {"nnpack", [](at::Context& c) { return int64_t{c.userEnabledNNPACK()}; }},
    {"deterministic algorithms", [](at::Context& c) { return int64_t{c.deterministicAlgorithms()}; }},
    {"fill uninitialized memory", [](at::Context& c) { return int64_t{c.deterministicFillUninitializedMemory()}; }},
    {"flash attention", [](at::Context& c) { return int64_t{c.userEnabledFlashSDP()}; }},
    {"FA3 attention", [](at::Context& c) { return int64_t{c.userEnabledFA3SDP()}; }},
    {"memory-efficient attention", [](at::Context& c) { return int64_t{c.userEnabledMemEfficientSDP()}; }},
    {"math attention", [](at::Context& c) { return int64_t{c.userEnabledMathSDP()}; }},
    {"cudnn attention", [](at::Context& c) { return int64_t{c.userEnabledCuDNNSDP()}; }},
    {"overrideable attention", [](at::Context& c) { return int64_t{c.userEnabledOverrideableSDP()}; }},
    {"reduced-precision math attention", [](at::Context& c) { return int64_t{c.allowFP16BF16ReductionMathSDP()}; }},
    {"priority order of attention backends", &priority_order},
    {"preferred linear-algebra backend",
     [](at::Context& c) { return static_cast<int64_t>(c.linalgPreferredBackend()); }},
    {"preferred BLAS backend", [](at::Context& c) { return static_cast<int64_t>(c.blasPreferredBackend()); }},
    {"preferred ROCm attention backend",
     [](at::Context& c) { return static_cast<int64_t>(c.getROCmFAPreferredBackend()); }},
    {"reduced-precision reduction of float16 in cublas",
     [](at::Context& c) { return static_cast<int64_t>(c.allowFP16ReductionCuBLAS()); }},
    {"reduced-precision reduction of bfloat16 in cublas",
     [](at::Context& c) { return static_cast<int64_t>(c.allowBF16ReductionCuBLAS()); }},
    {"accumulation of float16 in cublas", [](at::Context& c) { return int64_t{c.allowFP16AccumulationCuBLAS()}; }},
    {"reduced-precision reduction of float16 on the CPU",
     [](at::Context& c) { return int64_t{c.allowFP16ReductionCPU()}; }},
    {"multiprocessors left out of matrix products",
     [](at::Context& c) { return int64_t{c._SMCarveout_EXPERIMENTAL().value_or(0)}; }},
    {"quantized engine", [](at::Context& c) { return static_cast<int64_t>(c.qEngine()); }},
};

// The bytes of LibTorch's `Context` stand for all its switches, which take long to read one by one. First come its once flags, a kilobyte.
constexpr size_t kOnceFlags = sizeof(std::array<c10::once_flag, at::COMPILE_TIME_MAX_DEVICE_TYPES>);
constexpr size_t kSwitchBytes = sizeof(at::Context) - kOnceFlags;
const void* switch_bytes(const at::Context& context) {
  return reinterpret_cast<const unsigned char*>(&context) + kOnceFlags;
}

}  // namespace

struct Globals {
  std::array<unsigned char, kSwitchBytes> bytes;
  at::ScalarType dtype;
  std::array<int64_t, std::size(kSwitches)> values;

  bool is_now(const at::Context& context, at::ScalarType default_dtype) const {
    return dtype == default_dtype && std::memcmp(bytes.data(), switch_bytes(context), kSwitchBytes) == 0;
  }
};

namespace {

std::atomic<const Globals*> last_globals{nullptr};

std::string text_of(int64_t value, bool is_flag) { return is_flag ? (value ? "on" : "off") : std::to_string(value); }

const Globals* find_globals(at::Context& context, at::ScalarType dtype) {
  static auto* const mutex = new std::mutex;
  static auto* const known = new std::vector<const Globals*>;
  std::lock_guard lock(*mutex);
  for (const auto* globals : *known) {
    if (!globals->is_now(context, dtype)) continue;
    last_globals.store(globals, std::memory_order_release);
    return globals;
  }
  auto* globals = new Globals;
  globals->dtype = dtype;
  do {  // some switches are decided when first read; others may be set by another thread meanwhile
    std::memcpy(globals->bytes.data(), switch_bytes(context), kSwitchBytes);
    for (size_t i = 0; i < std::size(kSwitches); ++i) globals->values[i] = kSwitches[i].read(context);
  } while (!globals->is_now(context, dtype));
  known->push_back(globals);
  last_globals.store(globals, std::memory_order_release);
  return globals;
}

const Globals* globals_now() {
  auto& context = at::globalContext();
  const auto dtype = c10::get_default_dtype_as_scalartype();
  const auto* last = last_globals.load(std::memory_order_acquire);
  return last && last->is_now(context, dtype) ? last : find_globals(context, dtype);
}

// Flushing of denormals and rounding; not the flags that say what has happened.
uint16_t float_control_now() {
#if defined(__SSE__)
  return static_cast<uint16_t>(_mm_getcsr() & 0xffc0);
#elif defined(__aarch64__)
  uint64_t control;
  asm volatile("mrs %0, fpcr" : "=r"(control));
  return static_cast<uint16_t>((control >> 16) & 0x1ff);
#else
  return 0;
#endif
}

void set_float_control(uint16_t bits) {
#if defined(__SSE__)
  _mm_setcsr((_mm_getcsr() & ~0xffc0u) | bits);
#elif defined(__aarch64__)
  uint64_t control;
  asm volatile("mrs %0, fpcr" : "=r"(control));
  control = (control & ~(uint64_t{0x1ff} << 16)) | uint64_t{bits} << 16;
  asm volatile("msr fpcr, %0" : : "r"(control));
#else
  (void)bits;
#endif
}

struct Precision {
  at::Float32Backend backend;
  at::Float32Op op;
  const char* name;
};
constexpr Precision kPrecisions[] = {
    {at::Float32Backend::MKLDNN, at::Float32Op::MATMUL, "float32 matmul precision of mkldnn"},
    {at::Float32Backend::MKLDNN, at::Float32Op::CONV, "float32 convolution precision of mkldnn"},
    {at::Float32Backend::MKLDNN, at::Float32Op::RNN, "float32 rnn precision of mkldnn"},
    {at::Float32Backend::CUDA, at::Float32Op::MATMUL, "float32 matmul precision of CUDA"},
    {at::Float32Backend::CUDA, at::Float32Op::CONV, "float32 convolution precision of CUDA"},
    {at::Float32Backend::CUDA, at::Float32Op::RNN, "float32 rnn precision of CUDA"},
};

// Convolutions and recurrent layers multiply matrices too.
bool is_read(at::Float32Op op, ReadsPrecision by) {
  switch (op) {
    case at::Float32Op::CONV:
      return by == ReadsPrecision::kConv;
    case at::Float32Op::RNN:
      return by == ReadsPrecision::kRnn;
    default:
      return true;
  }
}

template <typename IsRead>
void read_precision(Ambient& ambient, IsRead is_read) {
  const bool cuda = at::hasCUDA();
  uint32_t bits = 0;
  for (size_t i = 0; i < std::size(kPrecisions); ++i) {
    const auto& [backend, op, name] = kPrecisions[i];
    if (!is_read(op) || (backend == at::Float32Backend::CUDA && !cuda)) continue;
    bits |= (static_cast<uint32_t>(at::globalContext().float32Precision(backend, op)) + 1) << (4 * i);
  }
  ambient.precision = bits & 0x7fffffff;
}

Ambient without_precision() {
  Ambient ambient;
  ambient.keys = c10::impl::tls_local_dispatch_key_set();
  ambient.globals = globals_now();
  ambient.threads = static_cast<uint16_t>(at::get_num_threads());
  ambient.float_control = float_control_now();
  ambient.grad_mode = c10::GradMode::is_enabled() ? 1 : 0;
  return ambient;
}

// The bits of `precision` for which a setting was read.
uint32_t read_mask(uint32_t precision) {
  uint32_t mask = 0;
  for (size_t i = 0; i < std::size(kPrecisions); ++i)
    if ((precision >> (4 * i)) & 0xf) mask |= uint32_t{0xf} << (4 * i);
  return mask;
}

}  // namespace

Ambient Ambient::now(ReadsPrecision precision) {
  auto ambient = without_precision();
  if (precision != ReadsPrecision::kNone)
    read_precision(ambient, [&](at::Float32Op op) { return is_read(op, precision); });
  return ambient;
}

Ambient Ambient::now() {
  auto ambient = without_precision();
  read_precision(ambient, [](at::Float32Op) { return true; });
  return ambient;
}

bool Ambient::same_switches(const Ambient& now) const {
  if (globals != now.globals && globals->values != now.globals->values) return false;
  return precision == now.precision || ((precision ^ now.precision) & read_mask(precision)) == 0;
}

bool Ambient::same_globals(const Ambient& now) const {
  return (globals == now.globals || globals->dtype == now.globals->dtype) && same_switches(now);
}

std::string describe_change(const Ambient& recorded, const Ambient& now) {
  const auto &before = *recorded.globals, &after = *now.globals;
  for (size_t i = 0; i < std::size(kSwitches); ++i)
    if (const auto was = before.values[i], is = after.values[i]; was != is) {
      const bool is_flag = (was | is) == 1;
      return std::string("the switch `") + kSwitches[i].name + "` was " + text_of(was, is_flag) +
             " in forward and is " + text_of(is, is_flag) + " now";
    }
  const uint32_t changed = (recorded.precision ^ now.precision) & read_mask(recorded.precision);
  for (size_t i = 0; i < std::size(kPrecisions); ++i)
    if ((changed >> (4 * i)) & 0xf) {
      const auto text = [&](uint32_t bits) {
        return at::precision2str(static_cast<at::Float32Precision>(((bits >> (4 * i)) & 0xf) - 1));
      };
      return std::string("the ") + kPrecisions[i].name + " was `" + text(recorded.precision) + "` in forward and is `" +
             text(now.precision) + "` now";
    }
  return std::string("the default dtype was ") + c10::toString(before.dtype) + " in forward and is " +
         c10::toString(after.dtype) + " now";
}

ArithmeticScope::ArithmeticScope()
    : threads_(static_cast<uint16_t>(at::get_num_threads())), float_control_(float_control_now()) {}

ArithmeticScope::~ArithmeticScope() {
  if (at::get_num_threads() != threads_) at::set_num_threads(threads_);
  if (float_control_now() != float_control_) set_float_control(float_control_);
}

void ArithmeticScope::set(const Ambient& recorded) {
  if (at::get_num_threads() != recorded.threads) at::set_num_threads(recorded.threads);
  if (float_control_now() != recorded.float_control) set_float_control(recorded.float_control);
}

AmbientScope::AmbientScope()
    : saved_keys_(c10::impl::tls_local_dispatch_key_set()), saved_grad_mode_(c10::GradMode::is_enabled()) {
  c10::impl::tls_set_dispatch_key_excluded(kTapeKey, true);
}

AmbientScope::~AmbientScope() {
  c10::impl::_force_tls_local_dispatch_key_set(saved_keys_);
  c10::GradMode::set_enabled(saved_grad_mode_);
}

void AmbientScope::set(const Ambient& recorded) {
  if (current_ && *current_ == recorded) return;
  auto keys = recorded.keys;
  keys.excluded_ = keys.excluded_.add(kTapeKey);
  c10::impl::_force_tls_local_dispatch_key_set(keys);
  c10::GradMode::set_enabled(recorded.grad_mode != 0);
  arithmetic_.set(recorded);
  current_ = recorded;
}

}  // namespace refrain::tape
