// Section 1: where the memory of a training step goes, how it grows with the batch, and when it peaks.
#include <refrain/breakdown.h>
#include <refrain/memory_tracker.h>
#include <refrain/refrain.h>
#include <refrain/timeline.h>
#include <torch/torch.h>

#include <cstdio>
#include <string>
#include <string_view>

namespace {

double mib(refrain::Bytes bytes) { return static_cast<double>(bytes) / (1 << 20); }

torch::nn::Sequential deep_network(int64_t input, int64_t hidden, int64_t depth) {
  torch::nn::Sequential net;
  for (int64_t i = 0; i < depth; ++i) {
    net->push_back(torch::nn::Linear(i == 0 ? input : hidden, hidden));
    net->push_back(torch::nn::ReLU());
  }
  return net;
}

int64_t parameter_count(const torch::nn::Module& net) {
  int64_t n = 0;
  for (const auto& p : net.parameters()) n += p.numel();
  return n;
}

// 1.1 and 1.2: the fixed cost by arithmetic and as measured, and activations by batch, likewise.
bool breakdown() {
  constexpr int64_t kHidden = 1024, kDepth = 10;
  refrain::MemoryScope memory;
  auto net = deep_network(1024, kHidden, kDepth);
  torch::optim::Adam adam(net->parameters());

  const auto count = parameter_count(*net);
  const auto fixed = refrain::estimate_fixed(*net, adam);
  net->forward(torch::randn({2, 1024})).sum().backward();
  adam.step();
  const auto measured = memory.current();
  std::printf("1.1  %ld parameters, Adam, float32\n", count);
  std::printf("  parameters        %8.2f MiB\n", mib(fixed.parameters));
  std::printf("  gradients         %8.2f MiB\n", mib(fixed.gradients));
  std::printf("  optimizer states  %8.2f MiB\n", mib(fixed.optimizer_states));
  std::printf("  fixed cost        %8.2f MiB, measured %.2f MiB\n\n", mib(fixed.fixed()), mib(measured));

  bool as_predicted = count == 10'496'000 && fixed.parameters == 4 * count && fixed.gradients == 4 * count;
  std::printf("1.2  batch   activations MiB: estimated   measured   of total   peak until the end of backward MiB\n");
  for (const int64_t batch : {32, 64, 128, 256, 512}) {
    const auto x = torch::randn({batch, 1024});
    adam.zero_grad();
    const auto before = memory.current();
    refrain::MemoryScope step;
    auto loss = net->forward(x).sum();
    const auto activations = step.current() - static_cast<int64_t>(loss.nbytes());
    loss.backward();
    const auto peak = before + step.peak();
    const auto estimated = batch * kHidden * kDepth * 4;
    const auto total = fixed.fixed() + activations;
    std::printf("     %5ld  %26.2f %10.2f %9.1f%% %28.2f\n", batch, mib(estimated), mib(activations),
                100.0 * static_cast<double>(activations) / static_cast<double>(total), mib(peak));
    as_predicted = as_predicted && activations == estimated;
  }
  std::printf("  Activations pass the fixed cost at batch %ld.\n\n", fixed.fixed() / (kHidden * kDepth * 4) + 1);
  return as_predicted;
}

// 1.3: level after each layer, and what is alive at the peak.
bool when_it_peaks(int64_t hidden, int64_t batch) {
  constexpr int64_t kDepth = 8;
  refrain::MemoryTracker tracker;  // before the model: memory from before the first tracker is not counted
  torch::nn::Sequential net;
  for (int64_t i = 0; i < kDepth; ++i) net->push_back(torch::nn::Linear(hidden, hidden));
  auto x = torch::randn({batch, hidden});

  refrain::MemoryTimeline timeline(*net);
  timeline.annotate(refrain::MemoryKind::kInput, x, "x");
  const auto loaded = tracker.snapshot("model loaded");
  auto y = x;
  for (int64_t i = 0; i < kDepth; ++i) {
    y = net->ptr<torch::nn::LinearImpl>(static_cast<size_t>(i))->forward(y).relu();
    tracker.snapshot("after layer " + std::to_string(i + 1));
  }
  const auto after_forward = tracker.snapshot("after forward");
  y.sum().backward();
  y.reset();
  const auto after_backward = tracker.snapshot("after backward");
  const auto seen = timeline.stop();
  net->zero_grad();
  const auto after_zero_grad = tracker.snapshot("after zero_grad");

  std::printf("1.3  %ld layers of %ld, batch %ld\n%s", kDepth, hidden, batch, tracker.report().c_str());
  std::string_view phase;
  for (const auto& span : seen.phases) {
    if (span.begin_us <= seen.peak_us && seen.peak_us <= span.end_us) phase = refrain::name_of(span.phase);
  }
  std::printf("The peak is in %s. Alive there:\n", std::string(phase).c_str());
  for (int kind = 0; kind < refrain::kMemoryKinds; ++kind) {
    const auto bytes = seen.peak_of(static_cast<refrain::MemoryKind>(kind));
    if (bytes > 0) {
      std::printf("  %-18s %8.2f MiB\n", std::string(refrain::name_of(static_cast<refrain::MemoryKind>(kind))).c_str(),
                  mib(bytes));
    }
  }
  const auto activation = batch * hidden * 4;
  return phase == "backward" && seen.peak_bytes > after_forward && after_forward == loaded + kDepth * activation &&
         after_backward > loaded && after_zero_grad == loaded;
}

}  // namespace

int main(int argc, char** argv) {
  torch::manual_seed(0);
  const bool full = argc > 1 && std::string_view(argv[1]) == "--full";  // the notebook's sizes: 2 GB, half a minute
  const bool predicted = breakdown();
  const bool peaks = full ? when_it_peaks(4096, 256) : when_it_peaks(1024, 256);
  if (!predicted) std::printf("FAILED: activations are not batch x hidden x depth x 4 bytes\n");
  if (!peaks) std::printf("FAILED: the peak is not in backward, or a layer did not add batch x hidden x 4 bytes\n");
  return predicted && peaks ? 0 : 1;
}
