// Section 4: a model with and without checkpointing, and why the size of a region decides.
#include <refrain/refrain.h>
#include <torch/torch.h>

#include <cstdio>
#include <functional>
#include <string_view>
#include <vector>

namespace {

struct Step {
  refrain::Bytes kept, peak;  ///< after forward, and over the whole step; over the level before it
  std::vector<torch::Tensor> gradients;
};

Step run(torch::nn::ModuleList& net, const std::function<torch::Tensor()>& forward) {
  net->zero_grad(/*set_to_none=*/false);  // gradients stay allocated, so that `peak` is activations and temporaries
  Step step;
  {
    refrain::MemoryScope memory;
    auto y = forward();
    step.kept = memory.current();
    y.sum().backward();
    step.peak = memory.peak();
  }
  for (const auto& p : net->parameters()) {
    if (p.grad().defined()) step.gradients.push_back(p.grad().clone());
  }
  return step;
}

bool same(const Step& a, const Step& b) {
  bool equal = a.gradients.size() == b.gradients.size();
  for (size_t i = 0; equal && i < a.gradients.size(); ++i) equal = torch::equal(a.gradients[i], b.gradients[i]);
  return equal;
}

void show(const char* name, const Step& step, const Step& plain) {
  std::printf("  %-22s %10s %10s %8.1f%%   %s\n", name, refrain::format_bytes(step.kept).c_str(),
              refrain::format_bytes(step.peak).c_str(),
              100 - 100.0 * static_cast<double>(step.kept) / static_cast<double>(plain.kept),
              same(step, plain) ? "equal" : "DIFFERENT");
}

}  // namespace

int main(int argc, char** argv) {
  const bool full = argc > 1 && std::string_view(argv[1]) == "--full";
  const int64_t depth = 20, hidden = full ? 2048 : 256, batch = full ? 128 : 1024;
  torch::manual_seed(0);
  torch::nn::ModuleList net;
  for (int64_t i = 0; i < depth; ++i) net->push_back(torch::nn::Linear(hidden, hidden));
  auto x = torch::randn({batch, hidden});
  int layers_called = 0;
  const auto layers = [&](torch::Tensor h, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i, ++layers_called) {
      h = net->ptr<torch::nn::LinearImpl>(static_cast<size_t>(i))->forward(h).relu();
    }
    return h;
  };
  const auto in_regions_of = [&](int64_t size) {
    auto h = x;
    for (int64_t i = 0; i < depth; i += size) h = refrain::checkpoint(layers, h, i, i + size);
    return h;
  };

  // 4.1 and 4.2: two layers, the second one checkpointed. So little is saved that it shows only in the numbers.
  std::printf("4.1, 4.2  two layers of %ld, batch %ld\n", hidden, batch);
  std::printf("  %-22s %10s %10s %9s   gradients\n", "", "kept", "peak", "kept less");
  run(net, [&] { return layers(x, 0, depth); });  // makes the gradients
  const auto two_plain = run(net, [&] { return layers(layers(x, 0, 1), 1, 2); });
  const auto two = run(net, [&] { return refrain::checkpoint(layers, layers(x, 0, 1), 1, 2); });
  show("baseline", two_plain, two_plain);
  show("second layer", two, two_plain);

  // 4.3: a region keeps its input. Around each layer that is all there was to keep; around five it is one in five.
  std::printf("4.3  %ld layers of %ld, batch %ld\n", depth, hidden, batch);
  const auto plain = run(net, [&] { return layers(x, 0, depth); });
  layers_called = 0;
  const auto replayed = refrain::tape_stats().replayed_ops;
  const auto segments = run(net, [&] { return in_regions_of(5); });
  const auto played = refrain::tape_stats().replayed_ops - replayed;
  const auto called = layers_called;
  const auto per_layer = run(net, [&] { return in_regions_of(1); });
  show("baseline", plain, plain);
  show("each layer", per_layer, plain);
  show("4 segments of 5", segments, plain);
  std::printf("  Forward called %d layers, backward none: it replayed %ld operators.\n", called, played);
  // The result is kept by who holds it, in a region or not; so `each layer` can save that much and no more.
  const bool holds = same(two, two_plain) && same(plain, segments) && same(plain, per_layer) && called == depth &&
                     per_layer.kept >= plain.kept - batch * hidden * 4 && segments.kept * 4 <= plain.kept &&
                     segments.peak < plain.peak;
  if (!holds) {
    std::printf("FAILED: gradients differ, segments keep more than a quarter, or per-layer regions saved memory\n");
  }
  return holds ? 0 : 1;
}
