"""A limit that an eager training keeps by recomputing: pytorch/pytorch#62448

The limit stands for a smaller machine. `MemoryLimit` refuses what goes above it, as a machine would: torch's training
ends with an OutOfMemoryError. `MemoryCap` evicts tensors and recomputes them; the model and the loop are the same.
"""

import contextlib

import torch
from torch import nn

import refrain

refrain.install_memory_tracking()


def train(scope):
    """Trains five steps in `scope`. @return the losses and parameters, and the highest level."""
    torch.manual_seed(0)
    model = nn.Sequential(*[layer for _ in range(16) for layer in (nn.Linear(128, 128), nn.GELU(), nn.Dropout(0.1))])
    optimizer = torch.optim.AdamW(model.parameters())
    losses = []
    with refrain.MemoryScope() as memory, scope:
        for _ in range(5):
            loss = model(torch.randn(1024, 128)).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach().clone())
            del loss
    return losses + list(model.parameters()), memory.peak


def outcome(expected, scope):
    try:
        found, peak = train(scope)
    except torch.OutOfMemoryError as error:
        numbers = f"{error.requested} bytes more than {error.in_use}, limit {error.limit}"
        return f"OutOfMemoryError: {numbers}"
    equal = all(torch.equal(one, other) for one, other in zip(found, expected))
    return f"{'equal to the baseline, to the bit' if equal else 'other numbers'}; peak {peak / 2**20:.1f} MiB"


expected, peak = train(contextlib.nullcontext())
limit = refrain.memory_stats().current + peak // 2
print(f"baseline:          peak {peak / 2**20:.1f} MiB; the limit is half of it")
print("torch:            ", outcome(expected, refrain.MemoryLimit(limit)))
print("refrain.MemoryCap:", outcome(expected, refrain.MemoryCap(limit)))
