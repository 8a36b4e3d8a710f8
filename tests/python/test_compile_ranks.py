"""A peak budget for torch.compile on two ranks over Gloo: DDP, FSDP2, collectives in a graph; one plan for both."""

import contextlib
import os
import shutil
import unittest
from unittest import mock

import torch
import torch.distributed as dist
from support import on_two_ranks, skip_unless_compile_is_planned
from torch import nn

import refrain

HAS_COMPILER = shutil.which("g++") is not None or shutil.which("clang++") is not None
WIDTH = 128


def setUpModule():
    skip_unless_compile_is_planned()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x):
        return self.norm(self.down(nn.functional.gelu(self.up(x))))


class Net(nn.Module):
    def __init__(self, reduces):
        super().__init__()
        self.layers, self.reduces = nn.ModuleList(Block() for _ in range(6)), reduces

    def forward(self, x):
        from torch.distributed._functional_collectives import all_reduce

        for layer in self.layers:
            x = layer(x)
            if self.reduces:
                x = x + 0.1 * all_reduce(x.detach(), "sum", dist.group.WORLD)
        return x


def _call_of(kind, options):
    """The model, compiled."""
    model = Net(kind.startswith("collectives"))
    if kind == "fsdp":
        from torch.distributed.fsdp import fully_shard

        for layer in model.layers:
            layer.compile(options=options)
            fully_shard(layer)
        return fully_shard(model)
    if kind == "ddp":
        model = nn.parallel.DistributedDataParallel(model, bucket_cap_mb=1)  # several graphs
    return torch.compile(model, options=options)


def _train(kind, budget, rank):
    """Losses and parameters, the peak of a step, and the report."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    options = None if budget is None else refrain.compile_options(budget)
    call = _call_of(kind, options)
    optimizer = torch.optim.SGD(call.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(10 + rank)
    results = []
    for _ in range(5):
        x = torch.randn(256, WIDTH)
        with refrain.MemoryScope() as memory:
            loss = call(x).pow(2).mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        results.append(loss.detach())
    parameters = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in call.parameters()]
    results += [p.detach().clone() for p in parameters]
    return {"results": results, "peak": memory.peak, "report": options.report if options else None}


def _other_times(_costs, joint, op):
    """On rank 1: matrix products are cheap, and all else is dear."""
    return (1_000 if joint.is_extern(op.node) else 10_000_000), 0


def _work(rank, port, folder, kind):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), REFRAIN_CACHE_DIR=os.path.join(folder, str(rank)))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.set_num_threads(1)
    import torch._functorch.config as config
    import torch._inductor.config as inductor_config

    inductor_config.fx_graph_cache = config.enable_autograd_cache = False
    try:
        with contextlib.ExitStack() as stack:
            if kind == "collectives agreed":
                stack.enter_context(config.patch(_sync_decision_cross_ranks=True))
            if kind.startswith("collectives ") and rank == 1:
                from refrain._compile.cost import Costs

                stack.enter_context(mock.patch.object(Costs, "of", _other_times))
            budgets = (0.4,) if kind.startswith("collectives ") else (None, 0.4)
            torch.save([_train(kind, budget, rank) for budget in budgets], os.path.join(folder, f"{rank}.pt"))
    finally:
        dist.destroy_process_group()


@unittest.skipUnless(HAS_COMPILER, "inductor needs a C++ compiler")
class TwoRanks(unittest.TestCase):
    def check(self, kind, graphs):
        for rank, (plain, ours) in enumerate(on_two_ranks(_work, kind)):
            for expected, result in zip(plain["results"], ours["results"], strict=True):
                self.assertTrue(torch.equal(expected, result), f"{kind}, rank {rank}")
            report = ours["report"]
            self.assertEqual([graph.fallback for graph in report.graphs], [""] * graphs, report)
            self.assertTrue(report.is_settled and not report.warning, report)
            self.assertLessEqual(report.measured, 1.02 * report.target, report)
            self.assertLess(ours["peak"], 0.85 * plain["peak"], report)

    def test_ddp(self):
        self.check("ddp", 3)

    def test_fsdp2(self):
        self.check("fsdp", 2)  # whether the input needs a gradient

    def test_collectives(self):
        self.check("collectives", 1)

    def test_ranks_plan_for_themselves(self):
        first, second = (found[0]["report"].graphs[0] for found in on_two_ranks(_work, "collectives apart"))
        self.assertNotEqual(first.recomputed, second.recomputed)

    def test_ranks_agree_where_torch_is_told_to(self):
        first, second = (found[0] for found in on_two_ranks(_work, "collectives agreed"))
        self.assertEqual(first["report"].graphs[0].recomputed, second["report"].graphs[0].recomputed)
        self.assertEqual(first["peak"], second["peak"])
        self.assertTrue(first["report"].graphs[0].recomputed)


if __name__ == "__main__":
    unittest.main()
