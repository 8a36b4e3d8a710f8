"""Models, and a training whose every bit is compared with the baseline's."""

import contextlib
import ctypes
import gc
import hashlib
import os
import socket
import tempfile
import unittest
import warnings

warnings.filterwarnings("ignore", message="Failed to initialize NumPy")

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils._python_dispatch import is_traceable_wrapper_subclass  # noqa: E402

import refrain  # noqa: E402

try:
    import numpy
except ImportError:
    numpy = None

torch.set_num_threads(1)
refrain.install_memory_tracking()


def skip_unless_compile_is_planned():
    """For `setUpModule` of tests of budgets for `torch.compile`."""
    from refrain._compile import inductor

    if inductor.minor(torch.__version__) not in inductor.SUPPORTED:
        raise unittest.SkipTest("; ".join(inductor.missing_parts()))


def _on_rank(rank, work, port, folder, name):
    work(rank, port, folder, name)
    # Ends Gloo's threads with the process group, which models in cycles still hold: one that releases the thread state
    # of a collective while the interpreter ends aborts the process (torch's own; without refrain, too).
    gc.collect()


def on_two_ranks(work, name):
    """Runs `work(rank, port, folder, name)` in two processes. Returns what each saved as `{rank}.pt` in the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_on_rank, (work, port, folder, name), nprocs=2)
        return [torch.load(os.path.join(folder, f"{rank}.pt"), weights_only=False) for rank in range(2)]


class Program:
    """A model, its blocks for `checkpoint`, and an input of a step."""

    def __init__(self, model, blocks, batch):
        self.model, self.blocks, self.batch = model, blocks, batch

    def under(self, wrap):
        """Calls each block as `wrap(block.forward, ...)`."""
        for block in self.blocks:
            forward = block.forward
            block.forward = lambda *args, _forward=forward, **kwargs: wrap(_forward, *args, **kwargs)


def mlp():
    layers = [nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Dropout(0.1)) for _ in range(6)]
    return Program(nn.Sequential(*layers), layers, lambda: torch.randn(128, 64))


def encoder():
    layer = nn.TransformerEncoderLayer(32, 4, 64, 0.1, batch_first=True)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    return Program(model, list(model.layers), lambda: torch.randn(4, 24, 32))


class ResidualBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x):
        return torch.relu_(self.path(x) + x)


def resnet():
    blocks = [ResidualBlock(8) for _ in range(4)]
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    return Program(model, blocks, lambda: torch.randn(4, 3, 24, 24))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(32, 48, 2, dropout=0.2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(96, 16)
        self.body = nn.Module()
        self.body.forward = self._body

    def _body(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.head(y)

    def forward(self, x):
        return self.body.forward(x, torch.arange(x.size(0)) + x.size(1) - x.size(0) + 1)


def lstm():
    model = Recurrent()
    return Program(model, [model.body], lambda: torch.randn(6, 20, 32))


PROGRAMS = {"mlp": mlp, "encoder": encoder, "resnet": resnet, "lstm": lstm}


def digest(tensors):
    """Of all their bytes; of a sparse one, its sorted indices and values; of a subclass, the tensors that it holds."""
    found = hashlib.sha256()
    for tensor in tensors:
        if tensor is None:
            found.update(b"none;")
        elif is_traceable_wrapper_subclass(tensor):
            held = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
            found.update(digest([inner for inner in held if isinstance(inner, torch.Tensor)]).encode())
        elif tensor.is_sparse:
            sorted_by_index = tensor.coalesce()
            found.update(digest([sorted_by_index.indices(), sorted_by_index.values()]).encode())
        else:
            plain = tensor.detach().contiguous()
            found.update(ctypes.string_at(plain.data_ptr(), plain.nbytes) + b";")
    return found.hexdigest()


def state_of(model):
    return [*model.parameters(), *(p.grad for p in model.parameters()), *model.buffers(), torch.get_rng_state()]


class Trained:
    """What a training left."""

    def __init__(self, bits, base, peak, handle):
        self.bits, self.base, self.peak, self.handle = bits, base, peak, handle


def _seed(number):
    """Of a step: each rank has its own batches."""
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    return 100 + number + 1000 * rank


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2)


def train(make, wrap=None, scope=None, steps=3, around=lambda model: model, optimizer=adamw):
    """Warms up with one step, then trains `steps` under `scope(level)`; the bits of losses, parameters, gradients,
    buffers and the generator are compared. `around` wraps the model, as for DDP; `wrap` its blocks, after the first
    step.
    """
    torch.manual_seed(0)
    program = make()
    model = around(program.model)
    model.train()
    stepped = optimizer([p for p in program.model.parameters() if p.requires_grad])

    def step(number):
        torch.manual_seed(_seed(number))
        loss = model(program.batch()).pow(2).mean()
        loss.backward()
        kept = loss.detach().clone()
        del loss
        stepped.step()
        stepped.zero_grad(set_to_none=False)
        return kept

    losses = [step(0)]
    if wrap is not None:
        program.under(wrap)
    base = refrain.memory_stats().current
    with (scope(base) if scope else contextlib.nullcontext()) as handle, refrain.MemoryScope() as memory:
        losses += [step(number) for number in range(1, steps + 1)]
    # under the scope's end all is resident again
    return Trained(digest([*losses, *state_of(program.model)]), base, memory.peak, handle)


def unpatch_checkpoint():
    """Undoes `patch_torch`, but for what the import of the package does."""
    from refrain import _torch_patches

    refrain.unpatch_torch()
    _torch_patches.patch_on_import()
