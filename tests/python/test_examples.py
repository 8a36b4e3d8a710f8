"""The programs of examples/python: what torch does of itself, beside what this package does."""

import re
import subprocess
import sys
import unittest
from pathlib import Path

import torch

PROGRAMS = Path(__file__).resolve().parent.parent.parent / "examples/python"
EQUAL = r"equal to the baseline(?:'s)?, to the bit"
#: What each program prints: of torch as of 2.13, where alone it is compared, and of this package.
EXPECTED = {
    "moving_router": (
        r"torch.utils.checkpoint: CheckpointError: .*different metadata than during the forward pass",
        r"    reentrant:          other gradients than the baseline's, and no error",
        rf"refrain.checkpoint:     {EQUAL}",
    ),
    "batch_norm": (
        r"baseline:               3 batches",
        r"torch.utils.checkpoint: 6 batches, running mean off by up to \d",
        rf"refrain.checkpoint:     3 batches, statistics {EQUAL}",
    ),
    "selective_autocast": (
        r"torch.utils.checkpoint: RuntimeError: aten._to_copy.default encountered during backward but not found",
        rf"refrain.checkpoint:     {EQUAL}",
    ),
    "memory_cap": (
        r"baseline:          peak \d+.\d MiB; the limit is half of it",
        r"torch:             OutOfMemoryError: \d+ bytes more than \d+, limit \d+",
        rf"refrain.MemoryCap: {EQUAL}; peak \d+.\d MiB",
    ),
}


class Examples(unittest.TestCase):
    def test_each_is_run(self):
        """By a test of this file, or of another one that names it."""
        others = [path for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)]
        named = "".join(path.read_text() for path in others)
        missing = [path.name for path in PROGRAMS.glob("*.py") if path.stem not in EXPECTED and path.name not in named]
        self.assertEqual(missing, [], "add what it prints to EXPECTED, or a test of its own")

    def check(self, name):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", PROGRAMS / f"{name}.py"], capture_output=True, text=True, timeout=300
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = done.stdout.splitlines()
        self.assertEqual(len(lines), len(EXPECTED[name]), done.stdout)
        for line, expected in zip(lines, EXPECTED[name]):
            if expected.startswith("torch.utils") and not torch.__version__.startswith("2.13."):
                continue
            self.assertTrue(re.match(expected, line), f"found {line!r}, expected {expected!r}")

    def test_moving_router(self):
        self.check("moving_router")

    def test_batch_norm(self):
        self.check("batch_norm")

    def test_selective_autocast(self):
        self.check("selective_autocast")

    def test_memory_cap(self):
        self.check("memory_cap")


if __name__ == "__main__":
    unittest.main()
