"""Caps, limits and budgets: readers by pointer, steps, errors, numbers."""

import contextlib
import copy
import io
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import unittest

import refrain
import torch
from support import mlp, numpy
from torch import nn


def evicted(read):
    """Calls `read` with a tensor of 1.5 that a cap has just evicted; returns what it returns, and how much was evicted."""
    level = refrain.memory_stats().current
    with refrain.MemoryCap(level + 70_000, min_bytes=1) as cap:
        y = torch.full((64, 64), 0.5).add(1)  # 16 KiB
        others = [torch.full((64, 64), 1000.0 + i).cos().tan() for i in range(12)]
        before = cap.stats().evictions
        assert before > 0
        result = read(y)
        del others
        return result


class Readers(unittest.TestCase):
    expected = torch.full((64, 64), 1.5)

    def check(self, read):
        self.assertTrue(torch.equal(evicted(read), self.expected))

    def test_tolist(self):
        self.assertEqual(evicted(lambda y: y.tolist()), self.expected.tolist())

    def test_item_and_repr(self):
        self.assertEqual(evicted(lambda y: y[3, 3].item()), 1.5)
        self.assertIn("1.5", evicted(repr))

    def test_data_ptr(self):
        self.assertNotEqual(evicted(lambda y: y.data_ptr()), 0)

    def test_storage(self):
        self.assertEqual(evicted(lambda y: y.untyped_storage().tolist())[:4], [0, 0, 192, 63])
        self.assertEqual(evicted(lambda y: y.storage().tolist())[:2], [1.5, 1.5])

    def test_torch_save(self):
        def read(y):
            file = io.BytesIO()
            torch.save({"y": y, "again": y}, file)
            file.seek(0)
            return torch.load(file)["y"].clone()

        self.check(read)

    def test_pickle(self):
        self.check(lambda y: pickle.loads(pickle.dumps(y)).clone())

    def test_deepcopy(self):
        self.check(lambda y: copy.deepcopy(y).clone())

    def test_share_memory(self):
        self.check(lambda y: y.share_memory_().clone())

    def test_dlpack(self):
        self.check(lambda y: torch.from_dlpack(y).clone())

    @unittest.skipIf(numpy is None, "no numpy")
    def test_numpy(self):
        self.assertTrue(evicted(lambda y: (y.numpy() == 1.5).all()))
        self.assertTrue(evicted(lambda y: (numpy.asarray(y) == 1.5).all()))
        self.assertTrue(evicted(lambda y: (numpy.from_dlpack(y) == 1.5).all()))

    @unittest.skipIf(numpy is None, "no numpy")
    def test_an_array_stays_right_while_others_are_made(self):
        def read(y):
            array = y.numpy()
            others = [torch.full((64, 64), 5.0 + i).cos() for i in range(8)]
            del others
            return (array == 1.5).all()

        self.assertTrue(evicted(read))

    def test_save_of_many(self):
        """Each is made resident while the others may be evicted for it, and all are read at the end."""
        level = refrain.memory_stats().current
        file = io.BytesIO()
        with refrain.MemoryCap(level + 200_000, min_bytes=1):
            some = [torch.full((64, 64), float(i)).add(1) for i in range(8)]
            others = [torch.full((64, 64), 1000.0 + i).cos() for i in range(12)]
            torch.save(some, file)
            del others
        file.seek(0)
        self.assertEqual([one[0, 0].item() for one in torch.load(file)], [1.0 + i for i in range(8)])

    def test_a_storage_stays_right_while_others_are_made(self):
        level = refrain.memory_stats().current
        with refrain.MemoryCap(level + 70_000, min_bytes=1, heuristic="lru") as cap:
            y = torch.full((64, 64), 0.5).add(1)
            storage = y.untyped_storage()
            others = [torch.full((64, 64), 5.0 + i).cos().tan() for i in range(12)]
            self.assertGreater(cap.stats().evictions, 0)
            self.assertEqual(storage.tolist()[:4], [0, 0, 192, 63])
            del others

    def test_pin(self):
        def read(y):
            with refrain.pin(y, [y]):
                others = [torch.full((64, 64), 5.0 + i).cos() for i in range(2)]
                del others
                return y.clone()

        self.check(read)

    def test_methods_are_given_back(self):
        before = {name: getattr(torch.Tensor, name) for name in ("numpy", "tolist", "data_ptr", "untyped_storage", "__array__")}
        with refrain.MemoryCap("1GiB"), refrain.MemoryCap("2GiB"):
            self.assertNotEqual(torch.Tensor.tolist, before["tolist"])
        self.assertEqual({name: getattr(torch.Tensor, name) for name in before}, before)
        self.assertNotIn("tolist", torch.Tensor.__dict__)


class Caps(unittest.TestCase):
    def test_out_of_memory(self):
        level = refrain.memory_stats().current
        with refrain.MemoryCap(level + 10_000):
            with self.assertRaisesRegex(torch.OutOfMemoryError, "refrain::MemoryCap"):
                torch.ones(1000, 1000)
        with refrain.MemoryLimit(level + 10_000):
            with self.assertRaisesRegex(torch.OutOfMemoryError, "out of memory"):
                torch.ones(1000, 1000)
        torch.ones(1000, 1000)

    def test_out_of_memory_in_backward(self):
        p = torch.randn(64, 64, requires_grad=True)
        level = refrain.memory_stats().current
        y = p.sin().exp()
        with refrain.MemoryCap(level + 30_000):
            with self.assertRaises(torch.OutOfMemoryError):
                y.sum().backward()
        self.assertIsNone(p.grad)
        p.sin().exp().sum().backward()
        self.assertIsNotNone(p.grad)

    def test_max_overhead(self):
        program = mlp()
        x = program.batch()
        with refrain.MemoryScope() as memory:
            program.model(x).sum().backward()
        program.model.zero_grad()
        with self.assertRaisesRegex(torch.OutOfMemoryError, "max_overhead"):
            with refrain.MemoryCap(refrain.memory_stats().current + int(0.6 * memory.peak), max_overhead=1e-6):
                for _ in range(3):
                    program.model(x).sum().backward()
                    program.model.zero_grad()

    def test_numbers_of_our_own_calls(self):
        with self.assertRaises(torch.OutOfMemoryError) as caught:
            refrain.MemoryLimit(refrain.Budget.process(5000)).__enter__()
        self.assertEqual(caught.exception.limit, 5000)
        self.assertGreater(caught.exception.in_use, 5000)

    def test_heuristics(self):
        for heuristic in ("h_dtr", "lru", "largest", "msps"):
            with refrain.MemoryCap("1GiB", heuristic=heuristic):
                pass
        with self.assertRaisesRegex(ValueError, "expected one of h_dtr"):
            refrain.MemoryCap("1GiB", heuristic="belady")

    def test_limits_as_they_are_written(self):
        for bad, text in ((1, "1GiB"), (4096, "int above 4096"), ("2 gigs", "gigs"), ("2", "expected a unit"), (0.5, "MemoryBudget\\(0.5\\)"), (-1, "expected bytes")):
            with self.assertRaisesRegex(ValueError, text):
                refrain.MemoryCap(bad)
        for bad in (None, True, [1]):
            with self.assertRaises(TypeError):
                refrain.MemoryCap(bad)
        with self.assertRaisesRegex(ValueError, "fraction"):
            with refrain.MemoryCap(refrain.Budget.fraction(0.5)):
                pass
        with refrain.MemoryCap("1.5GiB") as cap:
            self.assertEqual(cap.stats().limit, 3 << 29)
        with refrain.MemoryCap(5000 + (1 << 30)) as cap:
            self.assertEqual(cap.stats().limit, 5000 + (1 << 30))

    def test_budgets_as_they_are_written(self):
        with self.assertRaisesRegex(ValueError, r"MemoryBudget\(1.0\).*MemoryBudget\('1GiB'\)"):
            refrain.MemoryBudget(1)
        with self.assertRaisesRegex(ValueError, "0.0 to 1.0"):
            refrain.MemoryBudget(1.5)
        with refrain.MemoryBudget("400MiB"), self.assertRaisesRegex(ValueError, "one at a time"):
            with refrain.MemoryBudget(0.5):
                pass

    def test_process_and_available(self):
        x = torch.randn(64, 64)
        with refrain.MemoryCap(refrain.Budget.available(0.5)) as cap:
            self.assertTrue(torch.equal(x.sin(), torch.sin(x)))
            self.assertGreater(cap.stats().process_limit, 0)

    def test_scopes_say_what_they_measured(self):
        with refrain.MemoryScope() as memory:
            x = torch.empty(1000)
            self.assertEqual(memory.current, 4000)
        self.assertEqual((memory.current, memory.peak, memory.allocations), (4000, 4000, 1))
        del x

    def test_statistics_after_the_end(self):
        with refrain.MemoryCap("1GiB") as cap:
            pass
        self.assertEqual(cap.stats().limit, 1 << 30)
        with self.assertRaisesRegex(RuntimeError, "not open yet"):
            refrain.MemoryCap("1GiB").stats()

    def test_worker_thread(self):
        found = []

        def read(y):
            def work():
                with refrain.CapThreadScope():
                    found.append(y.mul(2).sum().item())

            thread = threading.Thread(target=work)
            thread.start()
            thread.join()

        evicted(read)
        self.assertEqual(found, [64 * 64 * 3.0])

    def test_a_cap_with_room_to_spare_records_nothing(self):
        model = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32))
        for always, expected in ((False, 2), (True, 0)):
            refrain.reset_tape_counters()
            with refrain.MemoryCap(refrain.memory_stats().current + (16 << 20), always_record=always) as cap:
                for _ in range(5):
                    model.zero_grad()
                    model(torch.randn(64, 32)).pow(2).mean().backward()
            self.assertEqual(cap.stats().unrecorded_steps, expected)

    def test_accumulated_gradients_under_a_cap(self):
        def run(scope):
            torch.manual_seed(0)
            program = mlp()
            with scope(refrain.memory_stats().current):
                for number in range(4):
                    torch.manual_seed(number)
                    program.model(program.batch()).pow(2).mean().backward()
            return [p.grad.clone() for p in program.model.parameters()]

        with refrain.MemoryScope() as memory:
            plain = run(lambda level: contextlib.nullcontext())
        capped = run(lambda level: refrain.MemoryCap(level + int(0.7 * memory.peak)))
        for one, other in zip(plain, capped):
            self.assertTrue(torch.equal(one, other))


class Plans(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(0)
        program = mlp()
        self.model, self.x = program.model, program.batch()

    def step(self):
        self.model.zero_grad(set_to_none=True)
        self.model(self.x).pow(2).sum().backward()

    def test_profile_plan_run(self):
        self.step()
        trace = refrain.profile(self.step, runs=2)
        self.assertGreater(trace.operators, 20)
        plan = refrain.plan_step(trace, 0.5, time_limit=0.2)
        self.assertTrue(plan.fits)
        self.assertLess(plan.peak, trace.peak)
        self.assertIn("peak", plan.report())
        with tempfile.TemporaryDirectory() as folder:
            trace.save(f"{folder}/trace.json")
            plan.save(f"{folder}/plan.json")
            self.assertEqual(refrain.StepTrace.load(f"{folder}/trace.json").operators, trace.operators)
            plan = refrain.StepPlan.load(f"{folder}/plan.json")
            with open(f"{folder}/bad.json", "w") as file:
                file.write("{}")
            with self.assertRaises(refrain.FormatError):
                refrain.StepPlan.load(f"{folder}/bad.json")
        torch.manual_seed(5)
        self.step()
        plain = [p.grad.clone() for p in self.model.parameters()]
        with refrain.MemoryBudget(plan) as budget:
            torch.manual_seed(5)
            self.step()
            self.assertEqual(budget.stats().planned_steps, 1, budget.stats())
        for p, expected in zip(self.model.parameters(), plain):
            self.assertTrue(torch.equal(p.grad, expected))

    def test_least_limit(self):
        least = refrain.least_limit(self.step, runs=1, multiples=(1.0, 1.25))
        self.assertTrue(least.level < least.limit <= least.peak)
        self.assertLess(least.refused, least.limit)
        self.assertGreaterEqual(len(least.costs), 1)
        self.assertIn("lowest limit", least.report())
        with refrain.MemoryCap(int(least.level + 1.3 * (least.limit - least.level))):
            self.step()

    def test_a_steps_exception_passes(self):
        def step():
            raise KeyError("mine")

        with self.assertRaisesRegex(KeyError, "mine"):
            refrain.profile(step)
        with self.assertRaisesRegex(KeyError, "mine"):
            refrain.least_limit(step)
        with self.assertRaisesRegex(ValueError, "runs"):
            refrain.profile(self.step, runs=0)


class Processes(unittest.TestCase):
    def python(self, code, *more):
        """Runs a program of its own; returns its exit code and output."""
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, *more], capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout + done.stderr

    def test_exit_with_things_open(self):
        for body in (
            "cap = refrain.MemoryCap(refrain.memory_stats().current + 200_000); cap.__enter__(); y = [torch.randn(64, 64).sin() for _ in range(30)]",
            "y = refrain.checkpoint(torch.sin, x, policy=lambda op: 3)",
            "r = refrain.region(); r.__enter__(); y = x.sin()",
            "b = refrain.MemoryBudget(0.5); b.__enter__(); x.sin().sum().backward()",
        ):
            code, output = self.python(f"import torch, refrain; refrain.install_memory_tracking(); x = torch.randn(9, requires_grad=True); {body}")
            self.assertEqual((code, output), (0, ""), body)

    def test_exit_code_inside(self):
        code, _ = self.python("import refrain, sys\nwith refrain.MemoryCap('1GiB'): sys.exit(3)")
        self.assertEqual(code, 3)

    def test_fork(self):
        code, output = self.python(
            "import os, torch, refrain\n"
            "level = refrain.memory_stats().current\n"
            "with refrain.MemoryCap('64MiB') as cap:\n"
            "    y = torch.full((64, 64), .5).add(1)\n"
            "    child = os.fork()\n"
            "    if child == 0:\n"
            "        ok = y.tolist()[0][0] == 1.5 and torch.ones(5000, 5000).sum().item() == 25e6\n"
            "        os._exit(0 if ok else 1)\n"
            "    assert os.waitpid(child, 0)[1] == 0\n"
        )
        self.assertEqual((code, output), (0, ""))

    def test_the_wrong_library(self):
        code, output = self.python("import os; os.environ['REFRAIN_LIBRARY'] = '/nowhere/librefrain.so'; import refrain")
        self.assertEqual(code, 1)
        self.assertIn("ImportError: refrain: no librefrain.so for torch", output)
        other = torch._C.__file__
        code, output = self.python(f"import os; os.environ['REFRAIN_LIBRARY'] = {other!r}; import refrain")
        self.assertIn("has no C API", output)
        code, output = self.python("import torch; torch.__version__ = '2.10.0'; import refrain")
        self.assertIn("found torch 2.10.0", output)


if __name__ == "__main__":
    unittest.main()
