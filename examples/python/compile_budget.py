"""Three things that users of torch.compile's `activation_memory_budget` report, and the same with `compile_options`.

1. pytorch/pytorch#197838: a smaller budget has a higher peak.
2. Graph breaks: torch's budget is one for each graph, and none for the step.
3. pytorch/torchtitan#4636: a budget in bytes, here with dropout.

Compiles twelve times: some two minutes.
"""

import torch
import torch._functorch.config as functorch_config
from torch import nn

import refrain


class Block(nn.Module):
    def __init__(self, width, heads, drop):
        super().__init__()
        self.heads, self.drop = heads, nn.Dropout(drop)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.drop(self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))
        return x + self.drop(self.down(nn.functional.gelu(self.up(self.norm2(x)))))


class Model(nn.Module):
    def __init__(self, drop=0.0, breaks=False):
        super().__init__()
        self.breaks, self.blocks = breaks, nn.ModuleList(Block(64, 4, drop) for _ in range(4))

    def forward(self, x):
        for number, block in enumerate(self.blocks):
            if self.breaks and number == 2:
                torch._dynamo.graph_break()
            x = block(x)
        return x.pow(2).mean()


def step(model, call, x):
    """The peak over the level before the step, in MiB, and the gradients."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    with refrain.MemoryScope() as memory:
        call(x).backward()
    return memory.peak / 2**20, [parameter.grad.clone() for parameter in model.parameters()]


def under(model, x, torchs_budget=1.0, options=None):
    torch._dynamo.reset()
    functorch_config.activation_memory_budget = torchs_budget
    compiled = torch.compile(model, options=options)
    for _ in range(4):  # compiles, is measured, is planned again where it has to be
        found = step(model, compiled, x)
    functorch_config.activation_memory_budget = 1.0
    return found


def same(gradients, expected):
    return (
        "equal to torch.compile's, to the bit" if all(map(torch.equal, gradients, expected)) else "not torch.compile's"
    )


torch.manual_seed(0)
torch.set_num_threads(1)
refrain.install_memory_tracking()
x = torch.randn(2, 128, 64)

model = Model()
print("1. budgets and peaks, MiB")
peaks = [under(model, x, budget)[0] for budget in (1.0, 0.5, 0.0)]
print("   torch 1.0, 0.5, 0.0:  ", ", ".join(f"{peak:.2f}" for peak in peaks))
peaks = [under(model, x, options=refrain.compile_options(budget))[0] for budget in (1.0, 0.5, 0.0)]
print("   refrain 1.0, 0.5, 0.0:", ", ".join(f"{peak:.2f}" for peak in peaks))

model = Model(breaks=True)
print("2. two graphs, a budget of 0.3 for the step")
plain = under(model, x)[0]
print(f"   torch:   {under(model, x, 0.3)[0]:.2f} MiB of {plain:.2f}")
options = refrain.compile_options(0.3)
print(
    f"   refrain: {under(model, x, options=options)[0]:.2f} MiB of {plain:.2f}, "
    f"asked {options.report.target / 2**20:.2f}"
)

model = Model(drop=0.1)
plain, expected = under(model, x)
options = refrain.compile_options("3MiB")
peak, gradients = under(model, x, options=options)
print("3. a budget of 3 MiB, with dropout")
print("   torch:   a fraction of the saved bytes; none of the peak, in bytes")
print(f"   refrain: {peak:.2f} MiB of {plain:.2f}; gradients {same(gradients, expected)}")
