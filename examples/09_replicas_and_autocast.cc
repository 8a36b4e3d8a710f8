// Section 9: checkpointing with data parallel replicas, with mixed precision, and all of it together.
//
// Replicas are threads of one process here, each with a copy of the model and its share of the batch.
#include <refrain/refrain.h>
#include <torch/torch.h>

#include <cstdio>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

namespace nn = torch::nn;

namespace {

constexpr int64_t kWidth = 64, kDepth = 16;

nn::Sequential make_net() {
  nn::Sequential net;
  for (int64_t i = 0; i < kDepth; ++i) {
    net->push_back(nn::Linear(kWidth, kWidth));
    net->push_back(nn::GELU());
  }
  return net;
}

/// Mean square of the output; in regions of 8 layers if `checkpointed`.
torch::Tensor loss_of(nn::Sequential net, const torch::Tensor& x, bool checkpointed) {
  return (checkpointed ? refrain::checkpoint_sequential(net, refrain::Segments::uniform(8), x) : net->forward(x))
      .square()
      .mean();
}

std::vector<torch::Tensor> gradients(const nn::Module& net) {
  std::vector<torch::Tensor> all;
  for (const auto& p : net.parameters()) all.push_back(p.grad().clone());
  return all;
}

bool agree(const std::vector<torch::Tensor>& a, const std::vector<torch::Tensor>& b,
           const std::function<bool(const torch::Tensor&, const torch::Tensor&)>& same) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (!same(a[i], b[i])) return false;
  }
  return a.size() == b.size();
}

// 9.1: regions belong to the thread that opened them, so there is nothing to set up.
bool replicas() {
  const auto x = torch::randn({256, kWidth});
  const auto train = [&](nn::Sequential net, int64_t count, bool checkpointed) {
    std::vector<std::vector<torch::Tensor>> seen(static_cast<size_t>(count));
    std::vector<std::thread> threads;
    for (int64_t rank = 0; rank < count; ++rank) {
      threads.emplace_back([&, rank, share = x.chunk(count)[static_cast<size_t>(rank)]] {
        nn::Sequential replica(std::dynamic_pointer_cast<nn::SequentialImpl>(net->clone()));
        loss_of(replica, share, checkpointed).backward();
        seen[static_cast<size_t>(rank)] = gradients(*replica);
      });
    }
    for (auto& thread : threads) thread.join();
    for (size_t i = 0; i < seen[0].size(); ++i) {
      for (size_t rank = 1; rank < seen.size(); ++rank) seen[0][i] += seen[rank][i];
      seen[0][i] /= count;  // the mean, as an all-reduce would make it
    }
    return seen[0];
  };
  auto net = make_net();
  const auto one = train(net, 1, false), plain = train(net, 2, false), checkpointed = train(net, 2, true);
  const bool same_bits = agree(plain, checkpointed, [](auto& a, auto& b) { return torch::equal(a, b); });
  const bool same_mean = agree(one, checkpointed, [](auto& a, auto& b) { return torch::allclose(a, b, 1e-4, 1e-7); });
  std::printf("9.1  2 replicas in regions, against 2 of the baseline: %s; against one with the whole batch: %s\n",
              same_bits ? "equal to the bit" : "DIFFERENT", same_mean ? "equal within rounding" : "DIFFERENT");
  return same_bits && same_mean;
}

// 9.2, and what each adds to the others.
bool together() {
  auto net = make_net();
  const auto x = torch::randn({4096, kWidth});
  struct Row {
    const char* name;
    bool bfloat16, checkpointed;
    int64_t micro_batches;
    refrain::Bytes peak = 0;
    std::vector<torch::Tensor> gradients = {};
  };
  std::vector<Row> rows = {{"float32", false, false, 1},
                           {"bfloat16 autocast", true, false, 1},
                           {"bfloat16, regions", true, true, 1},
                           {"bfloat16, regions, 4 micro-batches", true, true, 4}};
  std::printf("9.2  %ld layers of %ld, batch %ld\n", kDepth, kWidth, x.size(0));
  for (auto& row : rows) {
    net->zero_grad();
    refrain::MemoryScope memory;
    for (const auto& micro : x.chunk(row.micro_batches)) {
      torch::Tensor loss;
      {
        std::optional<refrain::AutocastScope> autocast;
        if (row.bfloat16) autocast.emplace(torch::kCPU, torch::kBFloat16);
        loss = loss_of(net, micro, row.checkpointed) / row.micro_batches;
      }
      loss.backward();  // outside autocast, as in Python; replayed operators see the autocast of forward
    }
    row.peak = memory.peak();
    row.gradients = gradients(*net);
    std::printf("  %-36s peak %10s, float32's divided by %.1f\n", row.name, refrain::format_bytes(row.peak).c_str(),
                static_cast<double>(rows[0].peak) / static_cast<double>(row.peak));
  }
  const auto bits = [](auto& a, auto& b) { return torch::equal(a, b); };
  const bool same_bits = agree(rows[1].gradients, rows[2].gradients, bits);
  std::printf("  gradients under autocast, regions against the baseline: %s\n",
              same_bits ? "equal to the bit" : "DIFFERENT");
  return same_bits && rows[0].peak > rows[1].peak && rows[1].peak > rows[2].peak && rows[2].peak > rows[3].peak;
}

// A loop as in the notebook: forward under autocast, backward, Adam. bfloat16 has float's range of exponents; float16 has not,
// so its loss is scaled. A scaler that is not enabled does nothing.
bool training(torch::ScalarType dtype) {
  auto net = make_net();
  torch::optim::Adam adam(net->parameters(), 1e-2);
  const auto x = torch::randn({64, kWidth});
  refrain::GradScaler scaler(refrain::GradScalerOptions().enabled(dtype == torch::kHalf));
  double first = 0, last = 0;
  for (int i = 0; i < 5; ++i) {
    torch::Tensor loss;
    {
      refrain::AutocastScope autocast(torch::kCPU, dtype);
      loss = torch::mse_loss(refrain::checkpoint_sequential(net, 4, x), x);
    }
    adam.zero_grad();
    scaler.scale(loss).backward();
    scaler.step(adam);
    scaler.update();
    last = loss.item<double>();
    if (i == 0) first = last;
    std::printf("  %s, step %d: loss %.4f\n", c10::toString(dtype), i, last);
  }
  return last < first;
}

}  // namespace

int main() {
  torch::manual_seed(0);
  const bool parallel = replicas(), smaller = together(), learns = training(torch::kBFloat16) && training(torch::kHalf);
  if (!parallel) std::printf("FAILED: replicas have other gradients\n");
  if (!smaller) std::printf("FAILED: gradients differ, or a step of the table saves nothing\n");
  if (!learns) std::printf("FAILED: the loss does not fall\n");
  return parallel && smaller && learns ? 0 : 1;
}
