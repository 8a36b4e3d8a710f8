// Section 6: memory over depth, the largest batch within a limit, and what it costs in time.
#include <refrain/refrain.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string_view>
#include <vector>

namespace {

struct Model {
  Model(int64_t depth, int64_t width) {
    for (int64_t i = 0; i < depth; ++i) {
      layers.push_back(torch::nn::Sequential(torch::nn::Linear(width, width), torch::nn::ReLU()));
    }
  }
  /// @param segments  0: no checkpointing. As many as layers: each layer in a region of its own.
  void step(const torch::Tensor& x, int64_t segments) {
    for (auto& layer : layers) layer->zero_grad(/*set_to_none=*/false);
    auto y = x;
    if (segments == 0) {
      for (auto& layer : layers) y = layer->forward(y);
    } else {
      y = refrain::checkpoint_sequential(layers, segments, x);
    }
    y.sum().backward();
  }

  std::vector<torch::nn::Sequential> layers;
};

/// Bytes of activations and temporaries at the peak of a step; gradients are there from a step before.
double activation_peak(Model& model, const torch::Tensor& x, int64_t segments) {
  refrain::MemoryScope memory;
  model.step(x, segments);
  return static_cast<double>(memory.peak());
}

// 6.1
bool depths(int64_t width, int64_t batch) {
  std::printf("6.1  width %ld, batch %ld; activations and temporaries at the peak\n", width, batch);
  std::printf("  layers   baseline  each layer   sqrt(n) segments   saved\n");
  double saved = 0, saved_per_layer = 0;
  for (const int64_t depth : {10, 20, 40, 80}) {
    Model model(depth, width);
    const auto x = torch::randn({batch, width});
    model.step(x, 0);
    const auto plain = activation_peak(model, x, 0), per_layer = activation_peak(model, x, depth);
    const auto best = activation_peak(model, x, refrain::suggest_segments(depth));
    saved = 1 - best / plain;
    saved_per_layer = 1 - per_layer / plain;
    std::printf("  %6ld %6.2f MiB %7.2f MiB %14.2f MiB %6.1f%%\n", depth, plain / (1 << 20), per_layer / (1 << 20),
                best / (1 << 20), 100 * saved);
  }
  return saved > 0.5 && saved_per_layer < 0.1;
}

// 6.2: exponential, then binary search, as in the notebook; a trial that runs out throws and leaves nothing behind.
int64_t largest_batch(Model& model, int64_t width, int64_t segments, refrain::Bytes limit, bool& left_nothing) {
  const auto before = refrain::memory_stats().current;
  const auto fits = [&](int64_t batch) {
    refrain::MemoryLimit while_trying(limit);
    try {
      model.step(torch::randn({batch, width}), segments);
      return true;
    } catch (const c10::OutOfMemoryError&) {
    }
    left_nothing = left_nothing && refrain::memory_stats().current == before;
    return false;
  };
  int64_t works = 0, fails = 32;
  while (fits(fails)) {
    works = fails;
    fails *= 2;
  }
  while (fails - works > 1) {
    const auto middle = (works + fails) / 2;
    (fits(middle) ? works : fails) = middle;
  }
  return works;
}

bool batches(int64_t depth, int64_t width, refrain::Bytes for_activations) {
  refrain::install_memory_tracking();
  Model model(depth, width);
  model.step(torch::randn({1, width}), 0);  // makes the gradients
  const auto limit = refrain::memory_stats().current + for_activations;
  bool left_nothing = true;
  const auto plain = largest_batch(model, width, 0, limit, left_nothing);
  const auto segments = largest_batch(model, width, refrain::suggest_segments(depth), limit, left_nothing);
  std::printf("6.2  %ld layers of %ld, %s for activations\n", depth, width,
              refrain::format_bytes(for_activations).c_str());
  std::printf("  largest batch: %ld for the baseline, %ld in segments, %.1f times\n", plain, segments,
              static_cast<double>(segments) / static_cast<double>(plain));
  std::printf("  trials that ran out left %s behind\n", left_nothing ? "nothing" : "MEMORY");
  return segments > 2 * plain && left_nothing;
}

// 6.3: steps of both in turn, so that a machine that slows down slows both.
void overhead(int64_t depth, int64_t width, int64_t batch) {
  Model model(depth, width);
  const auto x = torch::randn({batch, width});
  const auto ms = [&](int64_t segments) {
    const auto begin = std::chrono::steady_clock::now();
    model.step(x, segments);
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
  };
  const auto segments = refrain::suggest_segments(depth);
  std::vector<double> plain, checkpointed;
  for (int i = 0; i < 12; ++i) {
    plain.push_back(ms(0));
    checkpointed.push_back(ms(segments));
  }
  const auto median = [](std::vector<double> times) {
    times.erase(times.begin(), times.begin() + 3);  // warming up
    std::nth_element(times.begin(), times.begin() + 4, times.end());
    return times[4];
  };
  const double without = median(plain), with = median(checkpointed);
  std::printf("6.3  %ld layers of %ld, batch %ld\n", depth, width, batch);
  std::printf("  %.1f ms a step for the baseline, %.1f ms in %ld segments: %.0f%% more\n", without, with, segments,
              100 * (with / without - 1));
}

}  // namespace

int main(int argc, char** argv) {
  const bool full = argc > 1 && std::string_view(argv[1]) == "--full";
  torch::manual_seed(0);
  const bool saves = full ? depths(1024, 64) : depths(128, 512);
  const bool grows = full ? batches(30, 2048, 64 << 20) : batches(30, 64, 16 << 20);
  full ? overhead(40, 1024, 64) : overhead(40, 256, 64);
  if (!saves) std::printf("FAILED: at 80 layers segments save less than half, or single layers save anything\n");
  if (!grows) std::printf("FAILED: the batch does not double, or a trial left memory behind\n");
  return saves && grows ? 0 : 1;
}
