/// What a program does with the library that it loaded. Counts what fails.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/library.h>

#include <cstdio>
#include <functional>
#include <memory>
#include <string>

#include "intercept/key.h"
#include "refrain/checkpoint.h"
#include "refrain/error.h"
#include "refrain/memory.h"
#include "refrain/memory_cap.h"
#include "refrain/tape.h"

namespace {

int failures = 0;

void expect(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

at::Tensor gradient_of(const std::function<at::Tensor(const at::Tensor&)>& fn) {
  at::manual_seed(3);
  const auto x = at::rand({64, 64}).set_requires_grad(true);
  const auto loss = fn(x);
  torch::autograd::Engine::get_default_engine().execute({torch::autograd::impl::gradient_edge(loss)},
                                                        {at::ones_like(loss)}, false, false, true);
  return x.grad();
}

at::Tensor thrice(const at::Tensor& x) { return at::mul(x, 3); }

// Operators with typed kernels and without, in place, random, a factory, and one that was defined after the library was loaded.
at::Tensor model(const at::Tensor& x) {
  static const auto late =
      c10::Dispatcher::singleton().findSchemaOrThrow("refrain_late::thrice", "").typed<at::Tensor(const at::Tensor&)>();
  auto h = at::dropout(x.mm(x).sin(), 0.5, true);
  h = h.mul(2).add_(at::randn({64, 64})).logaddexp(x).div(64).cumsum(0).tanh();
  at::Tensor scale;
  {
    const at::NoGradGuard no_grad;
    scale = late.call(h);
  }
  return (h * scale).cos().sum();
}

std::string thrown_by(const std::function<void()>& fn) {
  try {
    fn();
  } catch (const refrain::Error& error) {
    return error.what();
  }
  return "nothing";
}

}  // namespace

extern "C" int run_body(const char* mode) {
  refrain::install_memory_tracking();
  auto library =
      std::make_unique<torch::Library>(torch::Library::DEF, "refrain_late", std::nullopt, __FILE__, __LINE__);
  library->def("thrice(Tensor x) -> Tensor");
  library->impl("thrice", torch::dispatch(c10::DispatchKey::CPU, TORCH_FN(thrice)));

  refrain::self_test();
  const auto want = gradient_of(model);
  expect(want.isfinite().all().item<bool>(), "numbers");
  const auto before = refrain::tape_stats();
  expect(
      at::equal(want, gradient_of([](const at::Tensor& x) { return refrain::checkpoint([&] { return model(x); }); })),
      "a region's gradient");
  const auto after = refrain::tape_stats();
  expect(after.recorded_ops - before.recorded_ops >= 15,
         "a region records " + std::to_string(after.recorded_ops - before.recorded_ops) + " operators");
  expect(after.replayed_ops > before.replayed_ops, "a region replays");
  expect(after.live_ops == before.live_ops, "nothing is left of it");
  {
    const refrain::MemoryCap cap(refrain::memory_stats().current + 9 * 64 * 64 * 4);
    expect(at::equal(want, gradient_of(model)), "a cap's gradient");
    expect(cap.stats().recomputes > 0, "a cap recomputes");
  }

  if (std::string(mode) != "free") {
    const c10::impl::IncludeDispatchKeyGuard theirs(refrain::tape::kTapeKey);
    const auto message = thrown_by([] { refrain::checkpoint([] { return at::ones({1}); }); });
    expect(message.find("mode of another library on the dispatch key Fake") != std::string::npos,
           "a region in somebody's mode throws " + message);
    expect(thrown_by([] { refrain::MemoryCap cap(int64_t{1} << 40); }) != "nothing", "and so does a cap");
  }
  return failures;
}
