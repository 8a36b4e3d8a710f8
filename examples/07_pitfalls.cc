// Section 7: what goes wrong with checkpointing elsewhere, and what happens here.
#include <refrain/refrain.h>
#include <torch/torch.h>

#include <cstdio>
#include <string>

namespace {

int failures = 0;

void claim(bool holds, const char* what) {
  std::printf("  %s %s\n", holds ? "yes" : "NO ", what);
  failures += !holds;
}

/// The first line of the error that `fn` ends with; "" if it returns.
template <typename Fn>
std::string error_of(Fn fn) {
  try {
    fn();
  } catch (const c10::Error& e) {
    const std::string what = e.what_without_backtrace();
    return what.substr(0, what.find('\n'));
  } catch (const std::exception& e) {
    const std::string what = e.what();
    return what.substr(0, what.find('\n'));
  }
  return "";
}

}  // namespace

int main() {
  torch::manual_seed(0);

  std::printf("7.1  no_grad inside a region\n");
  const auto bad = [](torch::Tensor x) {
    torch::NoGradGuard no_grad;
    return x.square();
  };
  auto x = torch::randn({4}).requires_grad_();
  const auto plain_error = error_of([&] { bad(x).sum().backward(); });
  const auto region_error = error_of([&] { refrain::checkpoint(bad, x).sum().backward(); });
  std::printf("  backward: %s\n", region_error.c_str());
  claim(!plain_error.empty() && plain_error == region_error, "fails as the function does outside a region");
  refrain::checkpoint([](torch::Tensor t) { return t.square(); }, x).sum().backward();
  claim(torch::equal(x.grad(), 2 * x), "without no_grad the gradient is 2 x");

  std::printf("7.2  dropout inside a region\n");
  torch::nn::Sequential net(torch::nn::Linear(32, 64), torch::nn::GELU(), torch::nn::Dropout(0.5),
                            torch::nn::Linear(64, 32));
  auto input = torch::randn({4, 32}).requires_grad_();
  claim(refrain::verify_checkpoint(net, input).bit_equal(), "backward sees the mask of forward: equal to the bit");
  const auto fresh = refrain::CheckpointOptions().preserve_rng_state(false);
  const auto refused = error_of([&] { refrain::checkpoint(fresh, net, input).sum().backward(); });
  std::printf("  preserve_rng_state(false): %s\n", refused.c_str());
  claim(!refused.empty(), "a mask that cannot be redrawn is an error, not another mask");

  std::printf("7.3  gradients first\n");
  torch::nn::Sequential norm(torch::nn::Linear(16, 16), torch::nn::BatchNorm1d(16), torch::nn::ReLU(),
                             torch::nn::Linear(16, 16), torch::nn::Tanh());
  auto rows = torch::randn({8, 16});
  const auto report = refrain::verify_checkpoint(norm, rows);
  std::printf("%s", report.text().c_str());
  claim(report.replay.bit_equal(), "replay: outputs, gradients and BatchNorm statistics equal to the bit");
  claim(!report.rerun.bit_equal(), "rerun, as in Python: statistics moved twice, and the report says so");

  std::printf("7.3  side effects, nesting, in place\n");
  int calls = 0;
  auto counted = [&](torch::Tensor t) {
    ++calls;
    return norm->forward(t);
  };
  refrain::checkpoint(counted, rows).sum().backward();
  claim(calls == 1, "the function is called once");

  const auto replayed = refrain::tape_stats().replayed_ops;
  auto nested = [](torch::Tensor t) {
    return refrain::checkpoint([](torch::Tensor u) { return u.sin().cos().sin(); }, t.exp()).cos();
  };
  auto y = torch::randn({8}).requires_grad_();
  refrain::checkpoint(nested, y).sum().backward();
  const auto nested_ops = refrain::tape_stats().replayed_ops - replayed;
  auto z = y.detach().clone().requires_grad_();
  nested(z).sum().backward();
  std::printf("  a region in a region: 5 operators in forward, %ld replayed in backward\n", nested_ops);
  claim(torch::equal(y.grad(), z.grad()), "its gradients are equal");

  auto w = torch::randn({8, 8}).requires_grad_();
  auto out = refrain::checkpoint([&](torch::Tensor t) { return t.mm(w).sin().mm(w); }, torch::randn({4, 8}));
  {
    torch::NoGradGuard no_grad;
    w.add_(1);
  }
  const auto changed = error_of([&] { out.sum().backward(); });
  std::printf("  weights changed before backward: %s\n", changed.c_str());
  claim(!changed.empty(), "is an error, not a wrong gradient");

  std::printf("7.3  a region around one layer\n");
  torch::nn::Linear layer(64, 64);
  const auto saved = refrain::saved_tensors(refrain::CheckpointOptions(), layer, torch::randn({32, 64}));
  for (const auto& insight : saved.hints) std::printf("  %s\n", insight.c_str());
  claim(!saved.hints.empty(), "is told to save nothing");

  if (failures > 0) std::printf("FAILED: %d claims\n", failures);
  return failures > 0 ? 1 : 0;
}
