// Section 3: what this machine has, and the tools that measure memory.
#include <refrain/memory_tracker.h>
#include <refrain/refrain.h>
#include <torch/torch.h>
#include <torch/version.h>

#include <cstdio>
#include <string>

int main() {
  std::printf("3.1  LibTorch %s, CPU with %s, %d threads; CUDA: %s\n", TORCH_VERSION, at::get_cpu_capability().c_str(),
              at::get_num_threads(), torch::cuda::is_available() ? "available" : "none");
  refrain::self_test();  // throws if this LibTorch does not behave as the library needs
  std::printf("     self test passed\n");

  // 3.2: levels with labels and the peak. `MemoryTracker(torch::kCUDA)` does the same on a device.
  refrain::MemoryTracker tracker;
  auto a = torch::randn({512, 512});
  tracker.snapshot("a made");
  auto b = a.mm(a).sin();  // the product lives only until sin has read it
  tracker.snapshot("b made");
  a.reset();
  tracker.snapshot("a gone");
  std::printf("3.2\n%s", tracker.report().c_str());

  refrain::Bytes peak = 0;
  {
    auto scope = refrain::track_memory("b.exp().sum()", [&](const refrain::TrackedMemory& seen) {
      std::printf("%s: peak %s over what there was\n", seen.label.c_str(),
                  refrain::format_bytes(seen.peak - seen.before).c_str());
      peak = seen.peak - seen.before;
    });
    b.exp().sum();
  }

  // A limit makes running out of memory an exception at a byte of your choice, on any machine.
  bool refused = false;
  try {
    refrain::MemoryLimit limit(tracker.current() + (1 << 20) - 1);
    b.exp();
  } catch (const c10::OutOfMemoryError& error) {
    refused = true;
    std::printf("under a limit: %s\n", error.what_without_backtrace());
  }

  const refrain::Bytes tensor = 512 * 512 * 4;
  const bool exact = tracker.current() == tracker.snapshots()[2].bytes && tracker.peak() >= 3 * tensor &&
                     peak >= tensor && peak < tensor + 64 && refused;
  if (!exact) std::printf("FAILED: the tools do not count the bytes of these tensors\n");
  return exact ? 0 : 1;
}
