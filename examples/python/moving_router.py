"""A router that changes its mind between forward and recomputation: pytorch/torchtitan#1117

Its bias is moved in each forward, so that no expert gets most of the tokens. torch.utils.checkpoint calls the function
a second time, with the moved bias: tokens go to other experts. A region calls it once.
"""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

import refrain


class Experts(nn.Module):
    def __init__(self, width=16, count=4):
        super().__init__()
        self.router = nn.Linear(width, count)
        self.experts = nn.ModuleList([nn.Linear(width, width) for _ in range(count)])
        self.register_buffer("bias", torch.zeros(count))

    def forward(self, x):
        scores = self.router(x).softmax(-1)
        chosen = (scores + self.bias).argmax(-1)
        load = torch.bincount(chosen, minlength=len(self.experts)).to(x.dtype)
        self.bias += 0.1 * torch.sign(load.mean() - load)
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mine = (chosen == number).nonzero().squeeze(-1)
            y = y.index_add(0, mine, expert(x[mine]).relu() * scores[mine, number].unsqueeze(-1))
        return y


def step(checkpoint):
    """Gradients, and the bias after a step."""
    torch.manual_seed(0)
    model, x = Experts(), torch.randn(64, 16)
    checkpoint(model, x).pow(2).sum().backward()
    return [p.grad for p in model.parameters()] + [model.bias]


def outcome(expected, checkpoint):
    try:
        found = step(checkpoint)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    equal = all(torch.equal(one, other) for one, other in zip(found, expected))
    return "equal to the baseline, to the bit" if equal else "other gradients than the baseline's, and no error"


expected = step(lambda model, x: model(x))
print("torch.utils.checkpoint:", outcome(expected, lambda model, x: torch_checkpoint(model, x, use_reentrant=False)))
print(
    "    reentrant:         ",
    outcome(expected, lambda model, x: torch_checkpoint(model, x.requires_grad_(), use_reentrant=True)),
)
print("refrain.checkpoint:    ", outcome(expected, refrain.checkpoint))
