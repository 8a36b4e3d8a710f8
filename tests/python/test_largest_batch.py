"""The largest batch within a limit, found by steps of a real model."""

import gc
import signal
import threading
import time
import unittest

import refrain
import torch
from support import mlp
from torch import nn


class LargestBatch(unittest.TestCase):
    def setUp(self):
        gc.collect()
        torch.manual_seed(0)
        self.model = mlp().model
        self.step(2)  # gradients exist from here on
        self.model.zero_grad()
        self.level = refrain.memory_stats().current
        self.batches = []

    def tearDown(self):
        del self.model

    def step(self, batch, wrap=None):
        """A step of a batch. What is wrapped is the model's layers, each a region."""
        self.model.zero_grad(set_to_none=True)
        x = torch.randn(batch, 64)
        for layer in self.model:
            x = wrap(layer, x) if wrap else layer(x)
        x.pow(2).mean().backward()

    def counted(self, batch):
        self.batches.append(batch)
        self.step(batch)

    def holds(self, batch, limit):
        self.model.zero_grad(set_to_none=True)
        try:
            with refrain.MemoryLimit(limit):
                self.step(batch)
        except torch.OutOfMemoryError:
            return False
        return True

    def test_it_fits_and_the_next_does_not(self):
        for above in (1 << 20, 3 << 20):
            self.batches.clear()
            limit = self.level + above
            found = refrain.largest_batch(self.counted, limit)
            self.assertGreater(found.batch, 16)
            self.assertEqual(found.next_batch, found.batch + 1)
            self.assertLessEqual(found.peak, limit)
            self.assertGreater(found.next_peak, limit)
            self.assertGreater(found.resident_peak, found.peak)
            self.assertEqual([trial.batch for trial in found.trials] + [found.next_batch], self.batches)
            self.assertIn(refrain.BatchTrial(found.batch, True, found.peak, found.resident_peak), found.trials)
            self.assertLessEqual(len(found.trials), 20)
            self.assertTrue(self.holds(found.batch, limit))

    def test_refused_steps_leave_nothing(self):
        refrain.largest_batch(self.counted, self.level + (1 << 20))
        self.model.zero_grad(set_to_none=True)
        self.assertEqual(refrain.memory_stats().current, self.level)

    def test_regions_fit_a_larger_one(self):
        limit = self.level + (2 << 20)
        plain = refrain.largest_batch(self.step, limit)
        replayed = refrain.largest_batch(lambda batch: self.step(batch, refrain.checkpoint), limit)
        self.assertGreater(replayed.batch, 2 * plain.batch)

    def test_none_and_all(self):
        none = refrain.largest_batch(self.step, max(self.level, 8192))
        self.assertEqual((none.batch, none.next_batch), (0, 1))
        every = refrain.largest_batch(self.step, "1GiB", min_batch=2, max_batch=9)
        self.assertEqual((every.batch, every.next_batch, every.next_peak), (9, 0, 0))

    def test_steps_have_the_callers_state(self):
        seen = []

        def state():
            x = torch.ones(2, 2, device="cpu")
            return torch.is_grad_enabled(), torch.mm(x, x).dtype, torch.ones(1).device.type

        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
            expected = state()
            refrain.largest_batch(lambda batch: seen.append(state()), "1GiB", max_batch=4)
        self.assertEqual(expected, (False, torch.bfloat16, "meta"))
        self.assertEqual(set(seen), {expected})

    def test_a_cap_in_the_step(self):
        limit = self.level + (2 << 20)
        plain = refrain.largest_batch(self.step, limit)

        def step(batch):
            with refrain.MemoryCap(limit):
                self.step(batch)

        self.assertGreater(refrain.largest_batch(step, limit).batch, 2 * plain.batch)

    def test_the_systems_own_refusals_count(self):
        def step(batch):
            if batch > 5:
                raise [RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), MemoryError()][batch % 2]

        found = refrain.largest_batch(step, "1GiB")
        self.assertEqual((found.batch, found.next_batch), (5, 6))

    def test_errors_pass(self):
        def step(batch):
            if batch == 2:
                raise KeyError("mine")

        with self.assertRaisesRegex(KeyError, "mine"):
            refrain.largest_batch(step, "1GiB")
        for wrong, found in (
            ({"min_batch": 0}, "`min_batch` is 0"), ({"min_batch": 4, "max_batch": 3}, "`max_batch` 3"),
        ):  # fmt: skip
            with self.assertRaisesRegex(ValueError, found):
                refrain.largest_batch(self.step, "1GiB", **wrong)
        with self.assertRaisesRegex(ValueError, "expected bytes"):
            refrain.largest_batch(self.step, 1)
        self.step(2)  # and the next step runs

    def test_an_interrupt_ends_it_after_the_step(self):
        began = threading.Event()

        def step(batch):
            self.batches.append(batch)
            began.set()
            time.sleep(0.2)

        def interrupt():
            began.wait()
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        other = threading.Thread(target=interrupt)
        other.start()
        with self.assertRaises(KeyboardInterrupt):
            refrain.largest_batch(step, "1GiB")
        other.join()
        self.assertEqual(self.batches, [1])


class Models(unittest.TestCase):
    def test_with_an_optimizer(self):
        """The optimizer's state is part of a step's peak."""
        torch.manual_seed(0)
        model = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        optimizer = torch.optim.AdamW(model.parameters())

        def step(batch):
            optimizer.zero_grad()
            model(torch.randn(batch, 16, 32)).pow(2).mean().backward()
            optimizer.step()

        step(1)
        limit = refrain.memory_stats().current + (4 << 20)
        found = refrain.largest_batch(step, limit, min_batch=4)
        self.assertGreater(found.batch, 4)
        self.assertLessEqual(found.peak, limit)
        self.assertGreater(found.next_peak, limit)


if __name__ == "__main__":
    unittest.main()
