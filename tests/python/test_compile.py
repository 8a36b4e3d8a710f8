"""torch.compile, and kernels by pointer: a region inside of compiled code runs as it is; compiled code in a region, a cap or a budget runs in an `OpaqueScope`."""

import contextlib
import ctypes
import shutil
import unittest

import refrain
import torch
from torch import nn


@unittest.skipIf(shutil.which("g++") is None and shutil.which("clang++") is None, "no C++ compiler for inductor")
class Compile(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16))
        self.x = torch.randn(8, 16)

    def gradients(self, call):
        self.model.zero_grad()
        call(self.x).sum().backward()
        return [p.grad.clone() for p in self.model.parameters()]

    def assert_same(self, found, expected):
        for one, other in zip(found, expected, strict=True):
            self.assertTrue(torch.equal(one, other))

    def test_a_region_inside(self):
        plain = self.gradients(lambda x: self.model(x * 2.0) * 1.5)
        compiled = torch.compile(lambda x: refrain.checkpoint(self.model, x * 2.0) * 1.5)
        refrain.reset_tape_counters()
        for _ in range(2):
            for one, other in zip(self.gradients(compiled), plain):
                torch.testing.assert_close(one, other)
        self.assertGreater(refrain.tape_stats().replayed_ops, 0)

    def test_in_a_region(self):
        compiled = torch.compile(self.model)
        plain = self.gradients(compiled)
        for x in (self.x, self.x.clone().requires_grad_()):
            found = self.gradients(lambda _: refrain.checkpoint(lambda y: compiled(y * 1.0) * 1.0, x))
            self.assert_same(found, plain)

    def test_uncompiled_by_stance(self):
        compiled = torch.compile(self.model)
        plain = self.gradients(self.model)
        with torch.compiler.set_stance("force_eager"):
            self.assert_same(self.gradients(lambda x: refrain.checkpoint(compiled, x)), plain)

    def test_what_it_overwrites(self):
        """BatchNorm's statistics: read by an operator of the region, then written by a compiled graph."""
        norm = nn.BatchNorm1d(16)
        compiled = torch.compile(norm)

        def block(x):
            moved = x + norm.running_mean  # autograd keeps nothing of it, a replay reads the old statistics
            return compiled(x) * moved.tanh()

        def trained(wrap):
            norm.reset_running_stats()
            norm.running_mean.add_(0.5)
            x = self.x.clone().requires_grad_()
            results = []
            for _ in range(3):
                x.grad = None
                y = wrap(block, x)
                y.sum().backward()
                results += [y.detach().clone(), x.grad.clone(), norm.running_mean.clone(), norm.running_var.clone()]
            return results

        refrain.reset_tape_counters()
        self.assert_same(trained(refrain.checkpoint), trained(lambda f, x: f(x)))
        self.assertGreater(refrain.tape_stats().leaf_copies, 0)

    def test_under_caps_and_budgets(self):
        blocks = nn.ModuleList(nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.LayerNorm(64)) for _ in range(6))
        compiled = [torch.compile(block) if i % 2 else block for i, block in enumerate(blocks)]
        optimizer = torch.optim.SGD(blocks.parameters(), lr=0.1)

        def train(scope, steps=4):
            torch.manual_seed(0)
            for parameter in blocks.parameters():
                nn.init.normal_(parameter, std=0.1)
            losses = []
            with scope or contextlib.nullcontext():
                for _ in range(steps):
                    x = torch.randn(128, 64)
                    for block in compiled:
                        x = torch.dropout(block(x), 0.1, True).sin() + x
                    loss = x.pow(2).mean()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    losses.append(loss.detach().clone())
                    del loss, x
            return [*losses, *(p.detach().clone() for p in blocks.parameters())]

        train(None)
        base = refrain.memory_stats().current
        with refrain.MemoryScope() as memory:
            plain = train(None)
        for fraction in (0.9, 0.7):
            cap = refrain.MemoryCap(base + int(fraction * memory.peak))
            self.assert_same(train(cap), plain)
            if fraction < 0.8:
                self.assertGreater(cap.stats().evictions, 0)
        self.assert_same(train(refrain.MemoryBudget(0.5)), plain)


class Opaque(unittest.TestCase):
    """Kernels by pointer, written here with ctypes."""

    @staticmethod
    def fill(tensor, value):
        numbers = (ctypes.c_float * tensor.numel()).from_address(tensor.data_ptr())
        for i in range(tensor.numel()):
            numbers[i] = value

    def test_a_write_is_seen(self):
        x = torch.randn(8, requires_grad=True)

        def gradient(scope):
            state = torch.full((8,), 2.0)
            with scope:
                y = x * state
                with refrain.OpaqueScope(writes=[state]):
                    self.fill(state, 5.0)
                z = y.sin() * state  # sin's argument is replayed: from the 2 of before
            return torch.autograd.grad(z.sum(), x)[0]

        self.assertTrue(torch.equal(gradient(refrain.region()), gradient(contextlib.nullcontext())))

    def test_operators_inside_are_not_recorded(self):
        x = torch.randn(8, requires_grad=True)
        refrain.reset_tape_counters()
        with refrain.region(), refrain.OpaqueScope([x]):
            y = x.sin().exp()
        self.assertEqual(refrain.tape_stats().recorded_ops, 0)
        y.sum().backward()
        self.assertTrue(torch.equal(x.grad, (x.cos() * x.sin().exp()).detach()))

    def test_what_it_reads_is_resident(self):
        with refrain.MemoryCap("1GiB"):
            made = [torch.randn(4096).sin() for _ in range(4)]
            with refrain.OpaqueScope(made):
                read = [(ctypes.c_float * 4).from_address(torch._C.TensorBase.data_ptr(t))[0] for t in made]
        self.assertEqual(read, [t[0].item() for t in made])


if __name__ == "__main__":
    unittest.main()
