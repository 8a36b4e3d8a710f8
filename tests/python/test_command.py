"""`python -m refrain run`: an unmodified program, its output the baseline's to the bit."""

import os
import subprocess
import sys
import tempfile
import unittest

PROGRAM = """
import sys, torch
from torch import nn
if __name__ == "__main__":
    torch.manual_seed(0)
    model = nn.Sequential(*[layer for _ in range(12) for layer in (nn.Linear(64, 64), nn.GELU(), nn.Dropout(0.1))])
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(5):
        loss = model(torch.randn(256, 64)).pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(sys.argv[1:], loss.item().hex(), [p.double().sum().item().hex() for p in model.parameters()])
    sys.exit(int(sys.argv[1]))
"""


class Command(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        with open(os.path.join(cls.folder.name, "train_it.py"), "w") as file:
            file.write(PROGRAM)
        cls.plain = cls.python("train_it.py", "0")

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    @classmethod
    def python(cls, *arguments):
        done = subprocess.run([sys.executable, "-W", "ignore", *arguments], capture_output=True, text=True, cwd=cls.folder.name, timeout=200)
        return done.returncode, done.stdout, done.stderr

    def run_under(self, *options):
        code, output, errors = self.python("-m", "refrain", "run", *options, "train_it.py", "0")
        self.assertEqual((code, output), self.plain[:2], errors)
        return errors

    def test_memory_limit(self):
        self.assertRegex(self.run_under("--memory-limit", "2500KiB"), r"limit 2\.4 MiB; [1-9]\d* evictions, [1-9]\d* operators recomputed")

    def test_budget(self):
        self.assertIn("1 steps traced, 2 ran by plan, 0 diverged", self.run_under("--budget", "0.5"))
        self.assertIn("1 steps traced, 2 ran by plan, 0 diverged", self.run_under("--budget", "3MiB"))

    def test_limits_of_the_process(self):
        self.assertIn("limit of the process 2.0 GiB", self.run_under("--process-limit", "2GiB"))
        self.assertIn("limit of the process", self.run_under("--available", "0.5"))

    def test_a_module_and_no_line(self):
        code, output, errors = self.python("-m", "refrain", "run", "--memory-limit", "1GiB", "--patch-torch", "--quiet", "-m", "train_it", "0")
        self.assertEqual((code, output, errors), self.plain)

    def test_exit_codes(self):
        self.assertEqual(self.python("-m", "refrain", "run", "--memory-limit", "1GiB", "train_it.py", "3")[0], 3)
        code, _, errors = self.python("-m", "refrain", "run", "--memory-limit", "500KiB", "train_it.py", "0")
        self.assertEqual(code, 1)
        self.assertIn("torch.OutOfMemoryError", errors)

    def test_bad_arguments(self):
        for options, text in (
            (("--memory-limit", "8", "train_it.py"), "expected a unit"),
            (("--budget", "1", "train_it.py"), "expected a unit"),
            (("--budget", "1.5", "train_it.py"), "0.0 to 1.0"),
            (("--memory-limit", "1GiB", "nowhere.py"), "no file nowhere.py"),
            (("--budget", "0.5", "--max-overhead", "2", "train_it.py"), "of a cap"),
            (("train_it.py",), "required"),
        ):
            code, _, errors = self.python("-m", "refrain", "run", *options)
            self.assertEqual(code, 2, errors)
            self.assertIn(text, errors)


if __name__ == "__main__":
    unittest.main()
