#!/usr/bin/env python3
"""Prints what a region of one operator costs, beside torch.utils.checkpoint: us a call, the least of seven interleaved rounds.

    REFRAIN_LIBRARY=build/lib/librefrain.so PYTHONPATH=python .venv/bin/python tests/python/overhead.py
"""

import time

import torch
from torch.utils.checkpoint import checkpoint as torch_checkpoint

import refrain

torch.set_num_threads(1)
x = torch.randn(4, 4, requires_grad=True)
policy = refrain.save_matmuls()


def with_block():
    with refrain.region():
        return torch.sin(x)


CALLS = {
    "the operator alone": lambda: torch.sin(x),
    "refrain.checkpoint": lambda: refrain.checkpoint(torch.sin, x),
    "refrain.region": with_block,
    "refrain.checkpoint, policy": lambda: refrain.checkpoint(torch.sin, x, policy=policy),
    "torch, use_reentrant=False": lambda: torch_checkpoint(torch.sin, x, use_reentrant=False),
    "torch, use_reentrant=True": lambda: torch_checkpoint(torch.sin, x, use_reentrant=True),
}
COUNT = 5000
least = dict.fromkeys(CALLS, float("inf"))
for _ in range(7):
    for name, call in CALLS.items():
        begin = time.perf_counter()
        for _ in range(COUNT):
            call()
        least[name] = min(least[name], (time.perf_counter() - begin) / COUNT * 1e6)
for name, us in least.items():
    print(f"{name:28s} {us:6.2f} us")
