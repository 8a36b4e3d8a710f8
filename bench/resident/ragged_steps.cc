// Does the heap stay as it is over many steps whose tensors have other sizes each time? Trains a model on batches of ragged lengths, trees, or
// images of changing sizes, under a cap or not, and prints a line for each tenth: bytes given out at the highest, held and free pages of the
// heap, resident bytes. `grown` compares the highest resident bytes of the last tenth with those of the second; exit code 1 if it is over `--most`.
#include <fmt/format.h>
#include <torch/torch.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "models/zoo.h"
#include "refrain/memory.h"
#include "refrain/memory_cap.h"

namespace {

using refrain::Bytes;

struct Options {
  std::string model = "lstm-ragged";
  int64_t steps = 10000;
  double part = 1.0;  ///< of the first steps' peak over the level before, as the limit of a cap; 1: no cap
  double most_mib = 4.0;
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    if (name == "--model")
      options.model = argv[i + 1];
    else if (name == "--steps")
      options.steps = std::stoll(argv[i + 1]);
    else if (name == "--part")
      options.part = std::stod(argv[i + 1]);
    else if (name == "--most")
      options.most_mib = std::stod(argv[i + 1]);
    else
      throw std::invalid_argument(name + ": expected --model, --steps, --part or --most");
  }
  return options;
}

/// A step by its number.
using Step = std::function<void(int64_t)>;

/// Convolutions on square images of 16 to 96 pixels, batches of 1 to 8.
Step images() {
  torch::nn::Sequential net;
  for (int64_t in = 3; int64_t out : {16, 32, 64}) {
    net->push_back(torch::nn::Conv2d(torch::nn::Conv2dOptions(in, out, 3).padding(1)));
    net->push_back(torch::nn::BatchNorm2d(out));
    net->push_back(torch::nn::ReLU());
    net->push_back(torch::nn::MaxPool2d(2));
    in = out;
  }
  auto adam = std::make_shared<torch::optim::Adam>(net->parameters());
  auto random = std::make_shared<std::mt19937>(7);
  return [=](int64_t) mutable {
    const auto side = static_cast<int64_t>(16 + (*random)() % 81), batch = static_cast<int64_t>(1 + (*random)() % 8);
    adam->zero_grad();
    net->forward(torch::randn({batch, 3, side, side})).pow(2).mean().backward();
    adam->step();
  };
}

Step of_zoo(const std::string& name) {
  refrain::models::ModelOptions sizes;
  if (name == "treelstm")
    sizes = {.batch = 16, .width = 64};
  else
    sizes = {.batch = 8, .seq = 48, .width = 64};
  std::shared_ptr<refrain::models::TrainableModel> model = refrain::models::make_model(name, sizes);
  auto adam = std::make_shared<torch::optim::Adam>(model->module().parameters());
  return [=](int64_t number) {
    const auto batch = model->synthetic_batch(static_cast<uint64_t>(number));  // other lengths and trees each time
    adam->zero_grad();
    model->loss(batch).backward();
    adam->step();
  };
}

double mib(Bytes bytes) { return static_cast<double>(bytes) / (1 << 20); }

int run(const Options& options) {
  refrain::install_memory_tracking();
  at::set_num_threads(1);
  torch::manual_seed(1);
  const Step step = options.model == "images" ? images() : of_zoo(options.model);
  for (int64_t i = 0; i < 20; ++i) step(i);
  std::optional<refrain::MemoryCap> cap;
  if (options.part < 1.0) {
    const Bytes level = refrain::memory_stats().current;
    cap.emplace(level + static_cast<Bytes>(options.part * static_cast<double>(refrain::memory_stats().peak - level)));
  }
  fmt::print("{}, {} steps, heap {}{}\n{:>8}{:>12}{:>12}{:>12}{:>12}  MiB\n", options.model, options.steps,
             refrain::tensor_heap(), cap ? fmt::format(", cap of {}", refrain::format_bytes(cap->stats().limit)) : "",
             "steps", "peak", "held", "free", "resident");
  std::vector<Bytes> resident;
  int64_t refused = 0;
  for (int tenth = 0; tenth < 10; ++tenth) {
    refrain::reset_peak_memory();
    for (int64_t i = options.steps * tenth / 10; i < options.steps * (tenth + 1) / 10; ++i) {
      try {
        step(20 + i);
      } catch (const refrain::OutOfMemory&) {  // a batch larger than the first ones
        ++refused;
      }
    }
    const auto seen = refrain::memory_stats();
    resident.push_back(seen.resident_peak);
    fmt::print("{:>8}{:>12.1f}{:>12.1f}{:>12.1f}{:>12.1f}\n", options.steps * (tenth + 1) / 10, mib(seen.peak),
               mib(seen.heap_held), mib(seen.heap_free), mib(seen.resident_peak));
    std::fflush(stdout);
  }
  const double grown = mib(resident.back() - resident[1]);
  fmt::print("grown by {:.1f} MiB from the second tenth to the last; {} steps refused memory\n", grown, refused);
  return grown <= options.most_mib ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(parse(argc, argv));
  } catch (const std::exception& error) {
    fmt::print(stderr, "ragged-steps: {}\n", error.what());
    return 2;
  }
}
