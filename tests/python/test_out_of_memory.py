"""Numbers of a refused allocation, as attributes of torch's error."""

import re
import threading
import unittest

import refrain
import torch
from support import unpatch_checkpoint


class OutOfMemory(unittest.TestCase):
    """What an operator of torch throws under a limit has its numbers."""

    def refused(self, scope, step):
        with self.assertRaises(torch.OutOfMemoryError) as caught:
            with scope:
                step()
        return caught.exception

    def check(self, error, reason):
        numbers = refrain.out_of_memory_numbers(error)
        self.assertEqual(error.reason, reason)
        for name in ("reason", "requested", "in_use", "limit", "min_limit"):
            self.assertEqual(getattr(error, name), getattr(numbers, name))
        found = {int(number) for number in re.findall(r"(\d+) bytes", str(error))}
        self.assertTrue({numbers.requested, numbers.in_use, numbers.limit} <= found, str(error))
        self.assertEqual(numbers.min_limit, numbers.in_use + numbers.requested)
        self.assertGreater(numbers.min_limit, numbers.limit)

    def test_in_an_operator(self):
        level = refrain.memory_stats().current
        x = torch.ones(1000, 1000)
        error = self.refused(refrain.MemoryCap(level + 5_000_000), lambda: torch.mm(x, x))
        self.check(error, "memory_cap")
        self.assertEqual(error.requested, 4_000_000)
        self.check(self.refused(refrain.MemoryLimit(level + 5_000_000), lambda: x + 1), "memory_limit")

    def test_it_is_enough(self):
        """The smallest limit that an error names is one that holds."""
        level = refrain.memory_stats().current
        x = torch.ones(1000, 1000)
        error = self.refused(refrain.MemoryCap(level + 5_000_000), lambda: torch.mm(x, x))
        with refrain.MemoryCap(error.min_limit):
            torch.mm(x, x)

    def test_inside_of_the_scope(self):
        x = torch.ones(1000, 1000)
        with refrain.MemoryCap(refrain.memory_stats().current + 1_000_000):
            try:
                x + 1
            except torch.OutOfMemoryError as error:
                self.check(error, "memory_cap")
            else:
                self.fail("it was not refused")

    def test_in_backward(self):
        x = torch.ones(1000, 1000, requires_grad=True)
        loss = x.sum()
        self.check(
            self.refused(refrain.MemoryCap(refrain.memory_stats().current + 1_000_000), loss.backward), "memory_cap"
        )

    def test_on_another_thread(self):
        errors = []

        def work():
            try:
                with refrain.MemoryLimit(refrain.memory_stats().current + 1_000_000):
                    torch.ones(1000, 1000)
            except torch.OutOfMemoryError as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        self.check(errors[0], "memory_limit")

    def test_max_overhead(self):
        """Refused by an allocation, after something was recomputed."""
        level = refrain.memory_stats().current

        def step():
            y = torch.full((64, 64), 0.5).add(1)  # 16 KiB
            others = [torch.full((64, 64), float(i)).cos().tan() for i in range(12)]
            y.sum()  # was evicted
            others += [torch.full((64, 64), float(i)).sin().tan() for i in range(12)]

        error = self.refused(refrain.MemoryCap(level + 70_000, min_bytes=1, max_overhead=1e-9), step)
        self.assertEqual((error.reason, error.limit), ("max_overhead", level + 70_000))
        self.assertGreater(error.min_limit, error.limit)

    def test_max_overhead_before_a_recomputation(self):
        """Refused where a second evicted tensor is read: no allocation has asked."""
        level = refrain.memory_stats().current

        def step():
            y, z = torch.full((64, 64), 0.5).add(1), torch.full((64, 64), 0.25).add(1)
            others = [torch.full((64, 64), float(i)).cos().tan() for i in range(12)]
            y.sum()
            z.sum()
            del others

        error = self.refused(refrain.MemoryCap(level + 120_000, min_bytes=1, max_overhead=1e-9), step)
        self.assertEqual((error.reason, error.requested, error.limit), ("max_overhead", 0, level + 120_000))

    def test_of_others(self):
        error = torch.OutOfMemoryError("of a GPU")
        self.assertIsNone(refrain.out_of_memory_numbers(error))
        with self.assertRaisesRegex(AttributeError, "no limit of refrain raised it"):
            error.requested
        self.assertFalse(hasattr(error, "limit"))

    def test_it_is_taken_back(self):
        refrain.unpatch_torch()
        try:
            self.assertNotIn("limit", torch.OutOfMemoryError.__dict__)
        finally:
            unpatch_checkpoint()
        self.assertIn("limit", torch.OutOfMemoryError.__dict__)


if __name__ == "__main__":
    unittest.main()
