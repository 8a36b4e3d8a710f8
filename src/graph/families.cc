#include "graph/families.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>

namespace refrain::graph {

ValueId JointBuilder::input(int64_t bytes) {
  const ValueId id = builder_.source(bytes);
  needs_grad_.push_back(false);
  is_parameter_.push_back(false);
  return id;
}

ValueId JointBuilder::parameter(int64_t bytes) {
  const ValueId id = input(bytes);
  needs_grad_.back() = true;
  is_parameter_.back() = true;
  return id;
}

ValueId JointBuilder::layer(const Layer& layer) {
  Op& op = builder_.op(layer.name, layer.inputs, layer.ns);
  op.scope = scope_;
  op.workspace = layer.workspace;
  op.random = layer.random;
  const ValueId id = layer.in_place ? builder_.overwrite(layer.inputs.at(0)) : builder_.output(layer.bytes);
  needs_grad_.push_back(std::any_of(layer.inputs.begin(), layer.inputs.end(),
                                    [&](ValueId v) { return needs_grad_[static_cast<size_t>(v)]; }));
  is_parameter_.push_back(false);
  layers_.push_back({layer, scope_, id});
  return id;
}

Graph JointBuilder::finish(std::string model) {
  grads_.assign(needs_grad_.size(), kNone);
  if (!layers_.empty()) {
    builder_.op("aten::ones_like", {}, 1).backward = true;
    grads_[static_cast<size_t>(layers_.back().output)] = builder_.output(builder_.value(layers_.back().output).bytes);
  }
  for (auto done = layers_.rbegin(); done != layers_.rend(); ++done) backward(*done);
  Graph graph = builder_.finish();
  graph.model = std::move(model);
  return graph;
}

void JointBuilder::backward(const Done& done) {
  const ValueId grad = grads_[static_cast<size_t>(done.output)];
  if (grad == kNone || !needs_grad_[static_cast<size_t>(done.output)]) return;
  std::vector<ValueId> wanted, reads{grad};
  for (const ValueId v : done.layer.inputs) {
    if (needs_grad_[static_cast<size_t>(v)]) wanted.push_back(v);
    if (done.layer.saves_inputs && !builder_.is_overwritten(v)) reads.push_back(v);
  }
  if (done.layer.saves_output && !builder_.is_overwritten(done.output)) reads.push_back(done.output);
  Op& op = builder_.op(done.layer.name + "_backward", reads, done.layer.ns * static_cast<int64_t>(wanted.size()));
  op.scope = done.scope;
  op.workspace = done.layer.workspace;
  op.backward = true;
  std::vector<ValueId> made;
  made.reserve(wanted.size());
  for (const ValueId v : wanted) made.push_back(builder_.output(builder_.value(v).bytes));
  for (size_t k = 0; k < wanted.size(); ++k) accumulate(wanted[k], made[k], done.scope);
}

void JointBuilder::accumulate(ValueId of, ValueId grad, const std::string& scope) {
  ValueId& sum = grads_[static_cast<size_t>(of)];
  if (sum == kNone) {
    sum = grad;
  } else {
    Op& op = builder_.op("aten::add_", {sum, grad}, 1);
    op.scope = scope;
    op.backward = true;
    sum = builder_.overwrite(sum);
  }
  if (!is_parameter_[static_cast<size_t>(of)]) return;
  builder_.keep_to_end(sum);
  builder_.value(sum).evictable = false;
}

namespace {

constexpr int64_t kUnit = int64_t{64} * 1024;

/// Times and sizes of layers, each up to a half more.
class Varied {
 public:
  explicit Varied(uint64_t seed) : random_(seed) {}
  int64_t operator()(int64_t number) { return number + number * static_cast<int64_t>(random_() % 512) / 1024; }

 private:
  std::mt19937_64 random_;
};

using Layer = JointBuilder::Layer;

Layer layer(std::string name, std::vector<ValueId> inputs, int64_t bytes, int64_t ns, bool saves_inputs,
            bool saves_output) {
  return {std::move(name), std::move(inputs), bytes, ns, saves_inputs, saves_output, false, 0, false};
}

ValueId convolution(JointBuilder& net, Varied& varied, ValueId x, int64_t bytes, int64_t ns) {
  const ValueId weight = net.parameter(kUnit / 4);
  Layer conv = layer("aten::convolution", {x, weight}, bytes, varied(ns), true, false);
  conv.workspace = kUnit;
  Layer relu = layer("aten::relu_", {net.layer(conv)}, 0, varied(ns / 20 + 1), false, true);
  relu.in_place = true;
  return net.layer(relu);
}

ValueId chain(JointBuilder& net, Varied& varied, int32_t ops) {
  ValueId x = net.parameter(kUnit);
  for (int32_t i = 0; i < ops / 2; ++i) {
    net.scope(fmt::format("layers.{}", i));
    x = net.layer(layer("aten::sin", {x}, varied(kUnit), varied(1000), true, false));
  }
  return x;
}

ValueId residual(JointBuilder& net, Varied& varied, int32_t ops) {
  ValueId x = convolution(net, varied, net.input(kUnit), 4 * kUnit, 100'000);
  for (int32_t i = 0; i < ops / 11; ++i) {
    net.scope(fmt::format("blocks.{}", i));
    ValueId y = convolution(net, varied, x, 4 * kUnit, 100'000);
    y = convolution(net, varied, y, 4 * kUnit, 100'000);
    x = net.layer(layer("aten::add", {x, y}, 4 * kUnit, varied(5'000), false, false));
  }
  return x;
}

/// Levels halve the bytes down to 1/16; below that they repeat, so that any size is possible.
ValueId unet(JointBuilder& net, Varied& varied, int32_t ops) {
  const int32_t depth = std::max(1, ops / 15);
  const auto level_bytes = [](int32_t level) { return (16 * kUnit) >> std::min(level, 4); };
  std::vector<ValueId> skips;
  ValueId x = net.input(kUnit);
  for (int32_t i = 0; i < depth; ++i) {
    net.scope(fmt::format("down.{}", i));
    x = convolution(net, varied, x, level_bytes(i), 100'000);
    skips.push_back(x);
    x = net.layer(layer("aten::max_pool2d", {x}, level_bytes(i + 1), varied(5'000), true, false));
  }
  for (int32_t i = depth; i-- > 0;) {
    net.scope(fmt::format("up.{}", i));
    x = net.layer(layer("aten::upsample", {x}, level_bytes(i), varied(5'000), false, false));
    x = net.layer(
        layer("aten::cat", {x, skips[static_cast<size_t>(i)]}, 2 * level_bytes(i), varied(5'000), false, false));
    x = convolution(net, varied, x, level_bytes(i), 100'000);
  }
  return x;
}

/// Blocks of 12 layers, each of which reads all before it in its block.
ValueId dense(JointBuilder& net, Varied& varied, int32_t ops) {
  ValueId x = net.input(kUnit);
  std::vector<ValueId> block;
  for (int32_t i = 0; i < ops / 12; ++i) {
    if (i % 12 == 0) block = {x};
    net.scope(fmt::format("blocks.{}.{}", i / 12, i % 12));
    const ValueId all =
        net.layer(layer("aten::cat", block, static_cast<int64_t>(block.size()) * kUnit, varied(2'000), false, false));
    x = convolution(net, varied, all, kUnit, 50'000);
    block.push_back(x);
  }
  return x;
}

ValueId linear(JointBuilder& net, Varied& varied, ValueId x, int64_t tokens, int64_t from, int64_t to) {
  const ValueId weight = net.parameter(4 * from * to);
  return net.layer(layer("aten::linear", {x, weight}, 4 * tokens * to, varied(tokens * from * to / 50), true, false));
}

void transformer_layer(JointBuilder& net, Varied& varied, ValueId& x) {
  constexpr int64_t kTokens = int64_t{8} * 128, kWidth = 256, kHeads = 4;
  constexpr int64_t kBytes = 4 * kTokens * kWidth;
  const auto norm = [&](ValueId v) {
    return net.layer(
        layer("aten::native_layer_norm", {v, net.parameter(4 * kWidth)}, kBytes, varied(200'000), true, false));
  };
  const auto dropout = [&](ValueId v) {
    Layer drop = layer("aten::native_dropout", {v}, kBytes, varied(150'000), false, true);
    drop.random = true;
    return net.layer(drop);
  };
  const auto add = [&](ValueId a, ValueId b) {
    return net.layer(layer("aten::add", {a, b}, kBytes, varied(60'000), false, false));
  };
  const ValueId qkv = linear(net, varied, norm(x), kTokens, kWidth, 3 * kWidth);
  const ValueId scores =
      net.layer(layer("aten::baddbmm", {qkv}, 4 * kTokens * 128 * kHeads, varied(700'000), true, false));
  const ValueId weights =
      net.layer(layer("aten::_softmax", {scores}, 4 * kTokens * 128 * kHeads, varied(400'000), false, true));
  const ValueId mixed = net.layer(layer("aten::bmm", {weights, qkv}, kBytes, varied(700'000), true, false));
  x = add(x, dropout(linear(net, varied, mixed, kTokens, kWidth, kWidth)));
  const ValueId wide = linear(net, varied, norm(x), kTokens, kWidth, 4 * kWidth);
  const ValueId active = net.layer(layer("aten::gelu", {wide}, 4 * kBytes, varied(900'000), true, false));
  x = add(x, dropout(linear(net, varied, active, kTokens, 4 * kWidth, kWidth)));
}

Graph finished(JointBuilder& net, Varied& varied, ValueId x, std::string name) {
  net.scope("loss");
  net.layer(layer("aten::mse_loss", {x}, 64, varied(10'000), true, false));
  return net.finish(std::move(name));
}

}  // namespace

std::string family_name(Family family) {
  constexpr const char* kNames[] = {"chain", "residual", "unet", "dense", "transformer"};
  return kNames[static_cast<size_t>(family)];
}

Graph make_transformer(int32_t layers, uint64_t seed) {
  JointBuilder net;
  Varied varied(seed);
  ValueId x = net.parameter(int64_t{4} * 8 * 128 * 256);
  for (int32_t i = 0; i < layers; ++i) {
    net.scope(fmt::format("blocks.{}", i));
    transformer_layer(net, varied, x);
  }
  return finished(net, varied, x, "transformer");
}

Graph make_family(Family family, int32_t ops, uint64_t seed) {
  if (family == Family::kTransformer) return make_transformer(std::max(1, ops / 31), seed);
  JointBuilder net;
  Varied varied(seed);
  const auto build = family == Family::kChain      ? chain
                     : family == Family::kResidual ? residual
                     : family == Family::kUnet     ? unet
                                                   : dense;
  const ValueId x = build(net, varied, ops);
  return finished(net, varied, x, family_name(family));
}

}  // namespace refrain::graph
