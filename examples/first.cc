#include <refrain/refrain.h>
#include <torch/torch.h>

#include <iostream>

int main() {
  torch::nn::Sequential block(torch::nn::Linear(64, 256), torch::nn::GELU(), torch::nn::Linear(256, 64));
  const auto residual = [&](torch::Tensor x) { return x + block->forward(x); };
  auto x = torch::randn({32, 64});
  for (int i = 0; i < 8; ++i) x = refrain::checkpoint(residual, x);
  x.square().mean().backward();  // replays each block, operator by operator
  std::cout << "gradient norm " << block->parameters()[0].grad().norm().item<double>() << "\n";
}
