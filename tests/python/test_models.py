"""Whole trainings, bit-equal to the baseline: four models under regions, caps, a budget, and both."""

import functools
import unittest

import refrain
import torch
from support import PROGRAMS, train, unpatch_checkpoint


def under_options(function, *args, policy, store=None, **kwargs):
    return refrain.checkpoint(function, *args, policy=policy, store=store, **kwargs)


class Models(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.baselines = {name: train(make) for name, make in PROGRAMS.items()}

    def each(self, check):
        """Calls `check(name, make, baseline)` for each model."""
        for name, make in PROGRAMS.items():
            with self.subTest(model=name):
                check(name, make, self.baselines[name])

    def assert_same(self, baseline, found):
        self.assertEqual(found.bits, baseline.bits)

    def test_the_baseline_repeats(self):
        self.each(lambda name, make, baseline: self.assert_same(baseline, train(make)))

    def test_checkpoint(self):
        def check(name, make, baseline):
            refrain.reset_tape_counters()
            found = train(make, wrap=refrain.checkpoint)
            self.assert_same(baseline, found)
            self.assertGreater(refrain.tape_stats().replayed_ops, 0)
            if name != "lstm":  # one block is the whole model
                self.assertLess(found.peak, 0.8 * baseline.peak)

        self.each(check)

    def test_caps(self):
        for fraction in (0.8, 0.6):

            def check(name, make, baseline):
                found = train(make, scope=lambda base: refrain.MemoryCap(base + int(fraction * baseline.peak)))
                self.assert_same(baseline, found)
                self.assertLessEqual(found.peak, int(fraction * baseline.peak))
                self.assertGreater(found.handle.stats().evictions, 0)

            self.each(check)

    def test_budget(self):
        def check(name, make, baseline):
            found = train(make, scope=lambda base: refrain.MemoryBudget(0.5))
            self.assert_same(baseline, found)
            stats = found.handle.stats()
            self.assertGreaterEqual(stats.planned_steps, 1)
            self.assertEqual(stats.traced_steps + stats.planned_steps, 3)
            self.assertEqual(stats.mismatched_steps, 0, stats.first_mismatch)

        self.each(check)

    def test_budget_in_bytes(self):
        def check(name, make, baseline):
            self.assert_same(baseline, train(make, scope=lambda base: refrain.MemoryBudget(refrain.Budget.bytes(base + int(0.85 * baseline.peak)))))

        self.each(check)

    def test_checkpoint_under_a_cap(self):
        def check(name, make, baseline):
            fraction = 1.2 if name == "lstm" else 0.9  # what regions keep is not evicted
            self.assert_same(baseline, train(make, wrap=refrain.checkpoint, scope=lambda base: refrain.MemoryCap(base + int(fraction * baseline.peak))))

        self.each(check)

    def test_checkpoint_with_policies(self):
        def by_hand(op):
            return refrain.CheckpointPolicy.MUST_SAVE if op.name == "aten::addmm" else refrain.CheckpointPolicy.PREFER_RECOMPUTE

        for policy in (refrain.save_matmuls(), refrain.save_compute_intensive(), refrain.save_random(), by_hand):
            wrap = functools.partial(under_options, policy=policy)
            self.each(lambda name, make, baseline: self.assert_same(baseline, train(make, wrap=wrap)))

    def test_offload_to_disk(self):
        store = refrain.OffloadStore("disk", min_bytes=1)
        wrap = functools.partial(under_options, policy=refrain.offload_larger_than(0), store=store)
        self.each(lambda name, make, baseline: self.assert_same(baseline, train(make, wrap=wrap)))
        self.each(lambda name, make, baseline: self.assert_same(baseline, train(make, scope=lambda base: refrain.OffloadScope(store))))
        self.assertGreater(store.stats().values, 0)

    def test_patched_torch(self):
        def check(name, make, baseline):
            refrain.reset_tape_counters()
            for reentrant in (False, True):
                wrap = lambda f, *args, **kwargs: torch.utils.checkpoint.checkpoint(f, *args, use_reentrant=reentrant, **kwargs)  # noqa: E731
                self.assert_same(baseline, train(make, wrap=wrap))
            self.assertGreater(refrain.tape_stats().replayed_ops, 0)

        refrain.patch_torch()
        try:
            self.each(check)
        finally:
            unpatch_checkpoint()


if __name__ == "__main__":
    unittest.main()
