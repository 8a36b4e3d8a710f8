#include "tape/registration.h"

#include <ATen/core/boxing/KernelFunction.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <fmt/format.h>
#include <torch/library.h>
#include <torch/version.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_set>
#include <vector>

#include "intercept/key.h"
#include "intercept/unwarned.h"
#include "refrain/error.h"
#include "tape/recorder.h"
#include "tape/typed_ops.h"

namespace refrain::tape {
namespace {

constexpr const char* kCopyMark = "refrain::tape";

template <typename Handle>
concept TellsKernel = requires(const Handle& op) {
  op.getComputedKernelForDispatchKey(kTapeKey);
};

// An operator's kernel on the key where another library has the fallback.
template <typename Handle>
class Between final : public c10::OperatorKernel {
 public:
  explicit Between(const Handle& op) : theirs_(op.getComputedKernelForDispatchKey(kTapeKey)) {}
  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
    if (c10::impl::tls_is_dispatch_key_excluded(kTapeMark)) return look_at_boxed(op, keys, stack);
    theirs_.callBoxed(op, keys, stack);
  }

 private:
  const decltype(std::declval<const Handle&>().getComputedKernelForDispatchKey(kTapeKey)) theirs_;
};

class Registration {
 public:
  // Never destroyed: operators of static tensors still run at exit.
  static Registration& get() {
    static auto* instance = new Registration;
    return *instance;
  }

  void require() {
    if (!failure_.empty()) throw EnvironmentError(failure_);
    if (!shares_) return;
    if (has_new_.load(std::memory_order_relaxed)) take_new();
    if (c10::impl::tls_is_dispatch_key_included(kTapeKey) && !c10::impl::tls_is_dispatch_key_excluded(kTapeMark))
      throw EnvironmentError(fmt::format(
          "[refrain] this thread is in a mode of another library on the dispatch key {}, such as fake tensors: "
          "expected none where the tape records. Leave the mode before the region or cap.",
          c10::toString(kTapeKey)));
  }

  // Whether another library has since replaced a kernel of the tape's own cannot be told.
  std::string out_of_sight() {
    for (const auto& name : dispatcher().getAllOpNames()) {
      const auto op = dispatcher().findSchema(name);
      if (op && op->hasKernelForDispatchKey(kTapeKey) && !taken_.contains(name) && !is_typed_op(name))
        return c10::toString(name);
    }
    return "";
  }

 private:
  class Listener final : public c10::OpRegistrationListener {
   public:
    explicit Listener(std::atomic<bool>& has_new) : has_new_(has_new) {}
    // the dispatcher's lock is held: nothing more is allowed
    void onOperatorRegistered(const c10::OperatorHandle&) override { has_new_.store(true, std::memory_order_relaxed); }
    void onOperatorDeregistered(const c10::OperatorHandle&) override {}

   private:
    std::atomic<bool>& has_new_;
  };

  Registration() {
    try {
      take_key();
    } catch (const std::exception& error) {
      failure_ = fmt::format(
          "[refrain] the tape cannot use the dispatch key {} of LibTorch {}: {}. Load Refrain before the library that "
          "took the key, or use a LibTorch from 2.11 to 2.14.",
          c10::toString(kTapeKey), TORCH_VERSION, error.what());
    }
  }

  void take_key() {
    if (dispatcher().findOp({kCopyMark, ""})) {
      failure_ =
          "[refrain] another copy of Refrain is loaded in this process, and only one can see operators. Link one librefrain.so in all parts of the program.";
      return;
    }
    mark_.emplace(torch::Library::FRAGMENT, "refrain", std::nullopt, __FILE__, __LINE__);
    mark_->def("tape() -> ()");
    const bool is_free = !dispatcher().hasBackendFallbackForDispatchKey(kTapeKey);
    takes_all_ = !is_free;
    take_operators();
    shares_ = !kernels_.empty();
    if (!is_free) {
      listening_ = dispatcher().addRegistrationListener(std::make_unique<Listener>(has_new_));
      has_new_ = false;  // the listener was called for existing operators
      return;
    }
    fallback_ = dispatcher().registerFallback(kTapeKey, c10::KernelFunction::makeFromBoxedFunction<&look_at_boxed>(),
                                              "[refrain] the tape");
    typed_ops_.emplace(torch::Library::IMPL, "aten", kTapeKey, __FILE__, __LINE__);
    add_typed_ops(*typed_ops_, taken_);
  }

  void take_new() {
    const std::lock_guard lock(mutex_);
    has_new_ = false;
    take_operators();
  }

  void take_operators() {
    for (const auto& name : dispatcher().getAllOpNames()) {
      const auto op = dispatcher().findSchema(name);
      if (op && !taken_.contains(name) && (takes_all_ || op->hasKernelForDispatchKey(kTapeKey))) take(*op);
    }
  }

  template <typename Handle>
  void take(const Handle& op) {
    if constexpr (TellsKernel<Handle>) {
      const Unwarned unwarned;
      kernels_.push_back(
          dispatcher().registerImpl(op.operator_name(), kTapeKey,
                                    c10::KernelFunction::makeFromBoxedFunctor(std::make_unique<Between<Handle>>(op)),
                                    std::nullopt, nullptr, "[refrain] the tape"));
      taken_.insert(op.operator_name());
    } else {
      throw EnvironmentError(
          fmt::format("another library has a kernel for `{}` there, and this LibTorch does not tell which",
                      c10::toString(op.operator_name())));
    }
  }

  static c10::Dispatcher& dispatcher() { return c10::Dispatcher::singleton(); }

  std::string failure_;
  std::optional<torch::Library> mark_, typed_ops_;
  bool takes_all_ = false;  ///< another library has the fallback
  bool shares_ = false;     ///< another library has kernels on the key
  std::atomic<bool> has_new_{false};
  std::mutex mutex_;  // guards what follows
  std::unordered_set<c10::OperatorName> taken_;
  std::vector<c10::RegistrationHandleRAII> kernels_;
  c10::RegistrationHandleRAII fallback_{[] {}}, listening_{[] {}};
};

}  // namespace

void require_key() { Registration::get().require(); }

std::string operator_out_of_sight() { return Registration::get().out_of_sight(); }

}  // namespace refrain::tape
