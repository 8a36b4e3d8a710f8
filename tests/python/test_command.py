"""`python -m refrain run`: an unmodified program, its output the baseline's to the bit."""

import os
import re
import subprocess
import sys
import tempfile
import unittest

from refrain._least_program import Trial, search

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
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *arguments],
            capture_output=True,
            text=True,
            cwd=cls.folder.name,
            timeout=200,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        return done.returncode, done.stdout, done.stderr

    def run_under(self, *options):
        code, output, errors = self.python("-m", "refrain", "run", *options, "train_it.py", "0")
        self.assertEqual((code, output), self.plain[:2], errors)
        return errors

    def test_memory_limit(self):
        self.assertRegex(
            self.run_under("--memory-limit", "2500KiB"),
            r"limit 2\.4 MiB; [1-9]\d* evictions, [1-9]\d* operators recomputed",
        )

    def test_budget(self):
        self.assertIn("1 steps traced, 2 ran by plan, 0 diverged", self.run_under("--budget", "0.5"))
        self.assertIn("1 steps traced, 2 ran by plan, 0 diverged", self.run_under("--budget", "3MiB"))

    def test_limits_of_the_process(self):
        self.assertIn("limit of the process 2.0 GiB", self.run_under("--process-limit", "2GiB"))
        self.assertIn("limit of the process", self.run_under("--available", "0.5"))

    def timeline(self, *options):
        """What the page of a timeline says: its heading, its finding, and the modules and kinds in its tables."""
        path = os.path.join(self.folder.name, "step.html")
        errors = self.run_under("--timeline", path, *options)
        with open(path, encoding="utf-8") as file:
            page = file.read()
        os.remove(path)
        return errors, page

    def test_timeline(self):
        errors, page = self.timeline()
        self.assertIn("timeline of step 3 in ", errors)
        self.assertTrue("<h2>Memory over time: Sequential, none</h2>" in page)
        for text in ("<code>18</code>", "aten::linear", "optimizer state", ">optimizer<", "<svg"):
            self.assertTrue(text in page, text)
        self.assertFalse(">recompute<" in page)

    def test_timeline_of_a_short_program(self):
        errors, page = self.timeline("--timeline-step", "50")
        self.assertIn("timeline of step 5 in ", errors)
        self.assertTrue("Sequential, none" in page)
        with open(os.path.join(self.folder.name, "no_step.py"), "w") as file:
            file.write("import torch\nprint(torch.ones(100).sum().item())\n")
        code, output, errors = self.python("-m", "refrain", "run", "--timeline", "a.html", "no_step.py")
        self.assertEqual((code, output), (0, "100.0\n"), errors)
        self.assertIn("timeline of the whole program, which ran no backward in a.html", errors)

    def test_timeline_within_limits(self):
        errors, page = self.timeline("--memory-limit", "2500KiB")
        self.assertRegex(errors, r"[1-9]\d* evictions.*; timeline of step 3")
        self.assertTrue("Sequential, --memory-limit 2500KiB" in page)
        self.assertTrue(">recompute<" in page)
        errors, page = self.timeline("--budget", "0.5")
        self.assertRegex(errors, "2 ran by plan, 0 diverged; timeline of step 5")
        self.assertTrue(">recompute<" in page)

    def test_least_limit(self):
        code, output, errors = self.python("-m", "refrain", "run", "--least-limit", "train_it.py", "0")
        self.assertEqual(code, 0, errors)
        found = re.match(
            r"lowest limit .* \((\d+) bytes\), 3 times in a row; (.*) was refused, without a limit the peak is (.*)\n"
            r"(\d+) runs",
            output,
        )
        lowest = int(found[1])
        self.assertIn(f"{found[4]} runs of the program, each until 4 backwards were done", output)
        self.assertEqual(errors.count("\n"), int(found[4]), errors)
        # one more run at the lowest limit may be refused, or run at less: evictions depend on measured times
        for multiple, expected in ((1.1, self.plain[:2]), (0.8, (1, ""))):
            limit = f"{int(multiple * lowest)} B"
            found = self.python("-m", "refrain", "run", "--memory-limit", limit, "train_it.py", "0")[:2]
            self.assertEqual(found, expected)

    def test_least_limit_of_a_program_that_fails(self):
        with open(os.path.join(self.folder.name, "fails.py"), "w") as file:
            file.write("import torch\ntorch.ones(9)\nraise KeyError('mine')\n")
        code, output, errors = self.python("-m", "refrain", "run", "--least-limit", "fails.py")
        self.assertEqual((code, output), (1, ""))
        self.assertIn("KeyError: 'mine'", errors)
        self.assertIn("ended with exit code 1, expected it to run", errors)

    def test_a_module_and_no_line(self):
        code, output, errors = self.python(
            "-m", "refrain", "run", "--memory-limit", "1GiB", "--patch-torch", "--quiet", "-m", "train_it", "0"
        )
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
            (("train_it.py",), "found nothing to do, expected one of --memory-limit"),
            (("--timeline", "no/where.html", "train_it.py"), "a folder that can be written to"),
            (("--timeline", "a.html", "--timeline-step", "0", "train_it.py"), "expected 1 or more"),
            (("--memory-limit", "1GiB", "--timeline-step", "2", "train_it.py"), "found no --timeline"),
            (("--least-limit", "--timeline", "a.html", "train_it.py"), "leave it out"),
            (("--least-limit", "--budget", "0.5", "train_it.py"), "not allowed with argument"),
        ):
            code, _, errors = self.python("-m", "refrain", "run", *options)
            self.assertEqual(code, 2, errors)
            self.assertIn(text, errors)


class Search(unittest.TestCase):
    """The bisection for the lowest limit, of a program that needs a known one."""

    def search(self, needed, peak, says_needed):
        tried = []

        def attempt(limit):
            tried.append(limit)
            holds = limit >= needed
            return Trial(limit, holds, min(limit, peak), 1.0, 4, needed if says_needed and not holds else 0)

        (held, *above), refused = search(attempt, peak, 0.01)
        self.assertTrue(needed <= held.limit <= needed + peak // 100 + 1, (needed, held))
        self.assertEqual([trial.limit for trial in above], [int(1.1 * held.limit)] if 1.1 * held.limit < peak else [])
        self.assertLess(refused, needed)
        return len(tried)

    def test_it_ends_within_a_hundredth(self):
        for needed in (1, 5_000_001, 10_000_000, 31_415_926, 99_999_999):
            self.assertLessEqual(self.search(needed, 100_000_000, False), 14)
            self.assertLessEqual(self.search(needed, 100_000_000, True), 14)

    def test_a_refusal_says_how_much_is_needed(self):
        self.assertLess(self.search(90_000_000, 100_000_000, True), self.search(90_000_000, 100_000_000, False))

    def test_a_cap_may_need_more_than_the_peak(self):
        self.assertLessEqual(self.search(103_000_000, 100_000_000, True), 11)
        self.assertLessEqual(self.search(113_000_000, 100_000_000, False), 14)

    def test_the_lowest_limit_holds_more_than_once(self):
        tried = []

        def attempt(limit):  # from 500 on always, from 300 on at first
            tried.append(limit)
            holds = limit >= 500 or (limit >= 300 and tried.count(limit) < 2)
            return Trial(limit, holds, min(limit, 1000), 1.0, 4)

        (held, above), refused = search(attempt, 1000, 0.01)
        self.assertEqual((500 <= held.limit < 510, refused), (True, held.limit - 10))
        self.assertEqual(tried[-6:], [held.limit] * 3 + [above.limit] * 3)

    def test_what_is_a_tenth_above_holds_too(self):
        def attempt(limit):
            return Trial(limit, 490 <= limit < 520 or limit >= 600, min(limit, 1000), 1.0, 4)

        (held, above), refused = search(attempt, 1000, 0.01)
        self.assertTrue(600 <= held.limit < 610, held)
        self.assertEqual((above.limit, above.holds, refused), (int(1.1 * held.limit), True, held.limit - 10))


if __name__ == "__main__":
    unittest.main()
