"""Selective checkpointing under autocast, with a weight that two regions share: pytorch/pytorch#193338

Autocast keeps the cast weight, so the second region's forward does not cast it. torch.utils.checkpoint calls the
function again when the cast weight is gone: it casts, and the selective policy knows of no such operator. A region
replays what forward did. The policy is torch's own in both.
"""

import functools

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from torch.utils.checkpoint import checkpoint as torch_checkpoint

import refrain


def keep_matmuls(context, op, *args, **kwargs):
    is_matmul = op in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    return CheckpointPolicy.MUST_SAVE if is_matmul else CheckpointPolicy.PREFER_RECOMPUTE


contexts = functools.partial(create_selective_checkpoint_contexts, keep_matmuls)


def step(checkpoint):
    """The gradients of a layer that is used twice."""
    torch.manual_seed(0)
    layer, x = nn.Linear(32, 32), torch.randn(8, 32)

    def block(y):
        return layer(y).sin()

    with torch.autocast("cpu", torch.bfloat16):
        y = checkpoint(block, checkpoint(block, x))
    y.float().sum().backward()
    return [p.grad for p in layer.parameters()]


def outcome(expected, checkpoint):
    try:
        found = step(checkpoint)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    equal = all(torch.equal(one, other) for one, other in zip(found, expected))
    return "equal to the baseline, to the bit" if equal else "other gradients than the baseline's, and no error"


expected = step(lambda block, x: block(x))
print(
    "torch.utils.checkpoint:",
    outcome(expected, functools.partial(torch_checkpoint, use_reentrant=False, context_fn=contexts)),
)
print("refrain.checkpoint:    ", outcome(expected, functools.partial(refrain.checkpoint, context_fn=contexts)))
