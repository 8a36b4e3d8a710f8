"""Step server for torch.utils.checkpoint and torch.compile: one training step per line on stdin, one JSON line per answer.

    torch_peer.py MODEL [--build-dir DIR] [--threads N]
    step MODE    one step: ms, bytes after forward and at the peak over the level before the step
    check MODE   gradients and buffers after one step, compared bit by bit with a plain step
    first MODE   of a compiled mode: compiling and the first step
    quit

MODEL is blocks-small, blocks, resnet50 or unet. MODE is plain; checkpoint (each transformer or residual block,
use_reentrant=False); checkpoint-all (ResNet's stem and head too); selective (as checkpoint, keeping matrix products,
convolutions and attention); inductor:0.5 or aot_eager:0.5, forward and loss in torch.compile with that backend and that
`activation_memory_budget`, one such mode a process. The protocol is that of refrain_steps.cc.
"""

import argparse
import ctypes
import functools
import gc
import json
import os
import subprocess
import sys
import time
import warnings

warnings.filterwarnings("ignore", message="Failed to initialize NumPy")

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.checkpoint import (  # noqa: E402
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

HERE = os.path.dirname(os.path.abspath(__file__))


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP; no mask, no dropout."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x):
        batch, seq, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, seq, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(attended.transpose(1, 2).reshape(batch, seq, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Bottleneck(nn.Module):
    def __init__(self, inputs, planes, stride):
        super().__init__()
        outputs = 4 * planes
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.down = None
        if stride != 1 or inputs != outputs:
            self.down = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.down is None else self.down(x)), inplace=True)


def resnet50(classes):
    layers = [nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True),
                            nn.MaxPool2d(3, 2, 1))]
    inputs = 64
    for planes, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for index in range(blocks):
            layers.append(Bottleneck(inputs, planes, stride if index == 0 else 1))
            inputs = 4 * planes
    layers.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, classes)))
    return layers


class DoubleConv(nn.Sequential):
    def __init__(self, inputs, outputs):
        layers = []
        for channels in (inputs, outputs):
            layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        super().__init__(*layers)


class Down(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.block = DoubleConv(inputs, outputs)

    def forward(self, x):
        return self.block(F.max_pool2d(x, 2))


class Up(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.grow = nn.ConvTranspose2d(inputs, outputs, 2, 2)
        self.block = DoubleConv(inputs, outputs)

    def forward(self, x, skip):
        return self.block(torch.cat([self.grow(x), skip], 1))


class UNet(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.down1 = DoubleConv(3, width)
        self.down2 = Down(width, 2 * width)
        self.bottom = Down(2 * width, 4 * width)
        self.up2 = Up(4 * width, 2 * width)
        self.up1 = Up(2 * width, width)
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x, call):
        skip1 = call(self.down1, x)
        skip2 = call(self.down2, skip1)
        x = call(self.up2, call(self.bottom, skip2), skip2)
        return call(self.head, call(self.up1, x, skip1))


class Row(nn.ModuleList):
    """Layers one after another."""

    def forward(self, x, call):
        for layer in self:
            x = call(layer, x)
        return x


def mean_square(output, target):
    return output.pow(2).mean()


def trainable_copy(x):
    return x.clone().requires_grad_()


def build_model(name):
    """Model, input, target and loss of one preset. The same operators as models/{transformer,resnet,unet}.cc."""
    torch.manual_seed(0)
    if name == "blocks-small":
        return Row(TransformerBlock(64, 4) for _ in range(12)), torch.randn(2, 128, 64), None, mean_square
    if name == "blocks":
        return Row(TransformerBlock(256, 4) for _ in range(8)), torch.randn(8, 128, 256), None, mean_square
    if name == "resnet50":
        return Row(resnet50(1000)), torch.randn(8, 3, 128, 128), torch.randint(1000, (8,)), F.cross_entropy
    if name == "unet":
        x = torch.randn(4, 3, 128, 128)
        return UNet(16), x, (x.mean(1, keepdim=True) > 0).float(), F.binary_cross_entropy_with_logits
    raise SystemExit(f"torch_peer: unknown model '{name}'; known: blocks-small, blocks, resnet50, unet")


aten = torch.ops.aten
KEPT_OPS = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.convolution.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def keep_products(context, op, *args, **kwargs):
    return CheckpointPolicy.MUST_SAVE if op in KEPT_OPS else CheckpointPolicy.PREFER_RECOMPUTE


keep_nothing = functools.partial(checkpoint, use_reentrant=False)
keep_products_only = functools.partial(
    checkpoint,
    use_reentrant=False,
    context_fn=functools.partial(create_selective_checkpoint_contexts, keep_products),
)


BLOCKS = (TransformerBlock, Bottleneck, DoubleConv, Down, Up)
BACKENDS = ("inductor", "aot_eager")


class Mode:
    """How a layer is called, and which layers so: all of them, or only transformer and residual blocks."""

    def __init__(self, call, everywhere=False):
        self.call = call
        self.everywhere = everywhere

    def applies_to(self, layer):
        return self.call is not None and (self.everywhere or isinstance(layer, BLOCKS))

    def __call__(self, layer, *inputs):
        return self.call(layer, *inputs) if self.applies_to(layer) else layer(*inputs)


MODES = {
    "plain": Mode(None),
    "checkpoint": Mode(keep_nothing),
    "checkpoint-all": Mode(keep_nothing, everywhere=True),
    "selective": Mode(keep_products_only),
    "selective-all": Mode(keep_products_only, everywhere=True),
}


def load_tracker(build_dir):
    """Compiles cputrack.cpp when it is missing or older than its source or torch, and loads it."""
    source = os.path.join(HERE, "cputrack.cpp")
    library = os.path.join(build_dir, f"libcputrack-{torch.__version__}.so")
    if not os.path.exists(library) or os.path.getmtime(library) < os.path.getmtime(source):
        os.makedirs(build_dir, exist_ok=True)
        root = os.path.dirname(torch.__file__)
        temporary = f"{library}.{os.getpid()}"
        subprocess.run(
            [os.environ.get("CXX", "g++"), "-std=c++20", "-O2", "-shared", "-fPIC", source, "-o", temporary,
             "-isystem", os.path.join(root, "include"), "-L" + os.path.join(root, "lib"), "-lc10"],
            check=True, stdout=sys.stderr)
        os.replace(temporary, library)
    tracker = ctypes.CDLL(library)
    for name in ("cputrack_current", "cputrack_peak"):
        getattr(tracker, name).restype = ctypes.c_int64
    tracker.cputrack_install()
    return tracker


class Server:
    def __init__(self, name, tracker):
        self.tracker = tracker
        self.model, self.input, self.target, self.loss_fn = build_model(name)
        self.model.train()
        self.compiled_mode = self.compiled = None
        # As the C++ models do: only the bare block stack gets an input that requires a gradient.
        self.prepare = (lambda x: x) if self.target is not None else trainable_copy

    def loss(self, x, mode):
        if mode == self.compiled_mode:
            return self.compiled(x)
        if mode not in MODES:
            raise ValueError(f"unknown mode '{mode}', or not compiled by 'first'; known: {', '.join(MODES)}")
        return self.loss_fn(self.model(x, MODES[mode]), self.target)

    def compile(self, mode):
        """The budget is read when a graph is compiled, so it is set for the process."""
        backend, _, budget = mode.partition(":")
        if backend not in BACKENDS or self.compiled_mode is not None:
            raise ValueError(f"found mode '{mode}', expected one of {', '.join(b + ':0.5' for b in BACKENDS)}, once a process")
        import torch._functorch.config as functorch_config
        functorch_config.activation_memory_budget = float(budget)
        self.compiled = torch.compile(lambda x: self.loss_fn(self.model(x, MODES["plain"]), self.target), backend=backend,
                                      fullgraph=True)
        self.compiled_mode = mode

    def first(self, mode):
        start = time.perf_counter()
        self.compile(mode)
        step = self.step(mode)
        return {"first_ms": (time.perf_counter() - start) * 1e3, "first_peak_bytes": step["peak_bytes"]}

    def step(self, mode):
        self.model.zero_grad(set_to_none=True)
        gc.collect()
        self.tracker.cputrack_reset_peak()
        base = self.tracker.cputrack_current()
        start = time.perf_counter()
        x = self.prepare(self.input)
        loss = self.loss(x, mode)
        forward_end = time.perf_counter()
        after_forward = self.tracker.cputrack_current() - base
        backward_start = time.perf_counter()
        loss.backward()
        end = time.perf_counter()
        peak = self.tracker.cputrack_peak() - base
        value = loss.item()
        del x, loss
        self.model.zero_grad(set_to_none=True)
        return {
            "ms": ((forward_end - start) + (end - backward_start)) * 1e3,
            "forward_ms": (forward_end - start) * 1e3,
            "after_forward_bytes": after_forward,
            "peak_bytes": peak,
            "left_bytes": self.tracker.cputrack_current() - base,
            "replayed_ops": None,
            "regions": sum(MODES[mode].applies_to(layer) for layer in self.model.children()) if mode in MODES else 0,
            "loss": value,
        }

    def outcome(self, mode, buffers):
        with torch.no_grad():
            for buffer, start in zip(self.model.buffers(), buffers):
                buffer.copy_(start)
        self.model.zero_grad(set_to_none=True)
        x = self.prepare(self.input)
        loss = self.loss(x, mode)
        loss.backward()
        gradients = [loss.detach()] + ([x.grad] if x.requires_grad else []) + [p.grad for p in self.model.parameters()]
        after = [b.clone() for b in self.model.buffers()]
        self.model.zero_grad(set_to_none=True)
        return gradients, after

    def check(self, mode):
        buffers = [b.clone() for b in self.model.buffers()]
        want_gradients, want_buffers = self.outcome("plain", buffers)
        gradients, after = self.outcome(mode, buffers)
        furthest = max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-30)) for a, b in zip(want_gradients, gradients))
        return {
            "gradients_relative_difference": furthest,
            "gradients_bit_equal": all(torch.equal(a, b) for a, b in zip(want_gradients, gradients)),
            "buffers_bit_equal": all(torch.equal(a, b) for a, b in zip(want_buffers, after)),
        }

    def hello(self, name):
        return {
            "runtime": "torch",
            "model": name,
            "strategies": list(MODES),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": sys.version.split()[0],
            "parameter_shapes": sorted(list(p.shape) for p in self.model.parameters()),
            "input_shape": list(self.input.shape),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--build-dir", default=os.path.join(HERE, "..", "..", "build", "peers"))
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    if args.threads > 0:
        torch.set_num_threads(args.threads)
    tracker = load_tracker(os.path.abspath(args.build_dir))
    server = Server(args.model, tracker)
    print(json.dumps(server.hello(args.model)), flush=True)
    for line in sys.stdin:
        words = line.split()
        if words == ["quit"]:
            break
        try:
            command, mode = words
            answer = {"step": server.step, "check": server.check, "first": server.first}[command](mode)
        except Exception as error:  # the driver decides what a failed step means
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
