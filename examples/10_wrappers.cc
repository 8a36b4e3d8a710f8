// Section 10: what other libraries wrap modules for, with this one's wrappers, marks and offload policy.
#include <refrain/refrain.h>
#include <torch/torch.h>

#include <cstdio>
#include <sstream>
#include <string>
#include <vector>

namespace nn = torch::nn;

namespace {

constexpr int64_t kWidth = 128;

template <typename Block>
nn::Sequential make_net() {
  nn::Sequential net;
  for (int i = 0; i < 4; ++i) {
    net->push_back(Block(nn::Linear(kWidth, 4 * kWidth), nn::GELU(), nn::Linear(4 * kWidth, kWidth)));
  }
  return net;
}

/// LibTorch refuses a Sequential in a Sequential, so the block of the baseline is a class of its own.
struct PlainBlockImpl : nn::SequentialImpl {
  using SequentialImpl::SequentialImpl;
  torch::Tensor forward(torch::Tensor x) { return refrain::call_layers(*this, x); }
};
TORCH_MODULE(PlainBlock);

struct Step {
  refrain::Bytes kept = 0;
  std::vector<torch::Tensor> gradients;
};

Step run(nn::Sequential& net, const torch::Tensor& x) {
  net->zero_grad();
  Step step;
  refrain::MemoryScope memory;
  auto loss = refrain::call(net, x).square().mean();
  step.kept = memory.current();
  loss.backward();
  for (const auto& p : net->parameters()) step.gradients.push_back(p.grad().clone());
  return step;
}

bool same(const Step& a, const Step& b) {
  bool equal = a.gradients.size() == b.gradients.size();
  for (size_t i = 0; equal && i < a.gradients.size(); ++i) equal = torch::equal(a.gradients[i], b.gradients[i]);
  return equal;
}

void show(const char* name, const Step& step, const Step& plain) {
  std::printf("  %-52s kept %10s, gradients %s\n", name, refrain::format_bytes(step.kept).c_str(),
              same(step, plain) ? "equal" : "DIFFERENT");
}

}  // namespace

int main() {
  torch::manual_seed(0);
  const auto x = torch::randn({256, kWidth});
  auto net = make_net<PlainBlock>();
  const auto plain = run(net, x);
  show("baseline", plain, plain);

  // 10.2, FairScale's checkpoint_wrapper: a module that is always a region. Names and archives are those of the unwrapped model.
  auto wrapped = make_net<refrain::nn::Checkpoint<nn::Sequential>>();
  std::stringstream archive;
  torch::save(net, archive);
  torch::load(wrapped, archive);
  const auto wrapper = run(wrapped, x);
  show("nn::Checkpoint<Sequential>, loaded from the baseline", wrapper, plain);
  const bool names = net->named_parameters().keys() == wrapped->named_parameters().keys();

  // Or marks on a finished model, by class or by name, on and off.
  const auto marked = refrain::apply_checkpointing(net, refrain::is_module<PlainBlock>());
  const auto marks = run(net, x);
  show("apply_checkpointing(net, is_module<PlainBlock>())", marks, plain);
  refrain::disable_checkpointing(net);
  const auto off = run(net, x);
  show("disable_checkpointing(net)", off, plain);

  // 10.1, DeepSpeed's offload: a policy's answer. On this CPU results are in host memory already and are kept; where a
  // model is on a device their bytes are offloaded to host memory and fetched in backward.
  refrain::apply_checkpointing(net, refrain::is_module<PlainBlock>(),
                               refrain::CheckpointOptions().policy(refrain::offload_ops({"aten::addmm"})));
  const auto offload = run(net, x);
  show("policy offload_ops({\"aten::addmm\"})", offload, plain);

  // The same for what blocks are given: FairScale's offload_to_cpu, and DeepSpeed's settings from its own configuration.
  for (size_t i = 0; i < wrapped->size(); ++i)
    wrapped->at<refrain::nn::Checkpoint<nn::Sequential>::Impl>(i).offload_to_cpu(true);
  const auto wrapper_to_cpu = run(wrapped, x);
  show("nn::Checkpoint<Sequential> with offload_to_cpu(true)", wrapper_to_cpu, plain);
  const refrain::ActivationCheckpointing activations(refrain::ActivationCheckpointingOptions::from_deepspeed_json(
      R"({"activation_checkpointing": {"contiguous_memory_optimization": true, "number_checkpoints": 4, "profile": true}})"));
  refrain::apply_checkpointing(net, refrain::is_module<PlainBlock>(), activations.options());
  const auto deepspeed = run(net, x);
  show("DeepSpeed's \"activation_checkpointing\" section", deepspeed, plain);
  std::printf("%s", activations.report().text().c_str());

  const bool holds = names && marked == 4 && same(wrapper, plain) && same(marks, plain) && same(off, plain) &&
                     same(offload, plain) && same(wrapper_to_cpu, plain) && same(deepspeed, plain) &&
                     wrapper_to_cpu.kept == wrapper.kept && activations.report().regions.at(0).calls == 4 &&
                     2 * wrapper.kept < plain.kept && marks.kept == wrapper.kept && off.kept == plain.kept &&
                     offload.kept < plain.kept;
  std::printf("  parameter names %s\n", names ? "equal" : "DIFFERENT");
  if (!holds) std::printf("FAILED: names or gradients differ, or wrapped blocks keep more than half\n");
  return holds ? 0 : 1;
}
