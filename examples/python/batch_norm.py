"""BatchNorm's statistics under checkpointing: pytorch/pytorch#96136

torch.utils.checkpoint calls the block again in backward, and its statistics move twice in a step. A region calls it
once, and replays the normalization without its statistics.
"""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

import refrain


def statistics(checkpoint):
    """Of a training of three steps: how many batches were counted, and the running mean."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    for _ in range(3):
        checkpoint(block, torch.randn(4, 3, 16, 16)).pow(2).mean().backward()
    return block[1].num_batches_tracked.item(), block[1].running_mean


def outcome(expected, checkpoint):
    batches, mean = statistics(checkpoint)
    if torch.equal(mean, expected[1]) and batches == expected[0]:
        return f"{batches} batches, statistics equal to the baseline's, to the bit"
    return f"{batches} batches, running mean off by up to {(mean - expected[1]).abs().max().item():.2g}"


expected = statistics(lambda block, x: block(x))
print(f"baseline:               {expected[0]} batches")
print("torch.utils.checkpoint:", outcome(expected, lambda block, x: torch_checkpoint(block, x, use_reentrant=False)))
print("refrain.checkpoint:    ", outcome(expected, refrain.checkpoint))
