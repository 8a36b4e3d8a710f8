// The README's promise, seen from outside: same gradient, less kept.
#include <refrain/refrain.h>
#include <torch/torch.h>

#include <iostream>

int main() {
  const auto block = [](const torch::Tensor& x) { return (x.sin() * x.exp()).tanh(); };
  const auto plain = torch::linspace(-1, 1, 64).requires_grad_();
  const auto replayed = plain.detach().clone().requires_grad_();

  block(plain).sum().backward();
  refrain::checkpoint(block, replayed).sum().backward();

  const bool equal = torch::equal(plain.grad(), replayed.grad());
  const bool counted = refrain::tape_stats().replayed_ops > 0;
  std::cout << "gradients " << (equal ? "equal" : "differ") << ", operators " << (counted ? "replayed" : "not replayed")
            << ", " << refrain::format_bytes(refrain::parse_bytes("300MiB")) << "\n";
  return equal && counted ? 0 : 1;
}
