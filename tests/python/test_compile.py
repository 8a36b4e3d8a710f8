"""torch.compile: a region inside of compiled code runs as it is; compiled code in a region or under a cap is refused, never silently wrong."""

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

    def test_a_region_inside(self):
        plain = self.gradients(lambda x: self.model(x * 2.0) * 1.5)
        compiled = torch.compile(lambda x: refrain.checkpoint(self.model, x * 2.0) * 1.5)
        refrain.reset_tape_counters()
        for _ in range(2):
            for one, other in zip(self.gradients(compiled), plain):
                torch.testing.assert_close(one, other)
        self.assertGreater(refrain.tape_stats().replayed_ops, 0)

    def test_compiled_code_is_refused(self):
        compiled = torch.compile(self.model)
        self.gradients(compiled)
        with self.assertRaisesRegex(RuntimeError, "force_eager"):
            refrain.checkpoint(compiled, self.x)
        with refrain.MemoryCap("1GiB"), self.assertRaisesRegex(RuntimeError, "force_eager"):
            compiled(self.x)
        self.gradients(compiled)
        plain = self.gradients(self.model)
        with torch.compiler.set_stance("force_eager"):
            found = self.gradients(lambda x: refrain.checkpoint(compiled, x))
        for one, other in zip(found, plain):
            self.assertTrue(torch.equal(one, other))


if __name__ == "__main__":
    unittest.main()
