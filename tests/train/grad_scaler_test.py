#!/usr/bin/env python3
"""Runs refrain::GradScaler and torch.amp.GradScaler over the same infs; every scale, skip and weight must be the same.

grad_scaler_test.py SCALER_TRACE; ends with 77, which ctest takes for skipped, where PyTorch cannot be imported.
"""
import json
import random
import subprocess
import sys
import unittest

try:
    import torch
except ImportError as error:
    print(f"skipped: PyTorch cannot be imported: {error}")
    sys.exit(77)

STEPS = 200
PROGRAM = sys.argv[1] if len(sys.argv) > 1 else ""


def plan(bad, clip=None, **options):
    """Of STEPS steps. bad(step) is what each optimizer's gradients hold: "", "inf" or "nan"."""
    defaults = {"init_scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000}
    return {**defaults, **options, "clip": clip, "steps": [{"bad": bad(step)} for step in range(STEPS)]}


def every(period, what="inf", run=1):
    return lambda step: [what if step % period < run else ""]


def at_random(seed, optimizers):
    generator = random.Random(seed)
    return lambda step: [generator.choices(["", "inf", "nan"], [8, 1, 1])[0] for _ in range(optimizers)]


def clip(gradient, largest):
    """PyTorch's own rounds differently in C++ and in Python."""
    norm = gradient.norm()
    gradient.mul_((torch.full_like(norm, largest) / (norm + 1e-6)).clamp_max(1))


def trace_of_refrain(plan):
    run = subprocess.run([PROGRAM], input=json.dumps(plan), capture_output=True, text=True)
    if run.returncode != 0:
        raise AssertionError(f"{PROGRAM} ended with {run.returncode}: {run.stderr}")
    return json.loads(run.stdout)


def trace_of_torch(plan):
    options = {name: plan[name] for name in ("init_scale", "growth_factor", "backoff_factor", "growth_interval")}
    scaler = torch.amp.GradScaler("cpu", **options)
    count = len(plan["steps"][0]["bad"])
    weights = [torch.arange(4.0).requires_grad_() for _ in range(count)]
    optimizers = [torch.optim.SGD([w], lr=0.01) for w in weights]
    steps_taken = [0] * count
    for i, optimizer in enumerate(optimizers):
        def count_step(*_, i=i):
            steps_taken[i] += 1
        optimizer.register_step_post_hook(count_step)

    seen = []
    for step, what in enumerate(plan["steps"]):
        losses = []
        for i, w in enumerate(weights):
            x = torch.arange(1.0, 5.0) / (step + i + 1)
            if what["bad"][i] == "inf":
                x[0] = float("inf")
            if what["bad"][i] == "nan":
                x[2] = float("nan")
            losses.append((w * x).sum())
        for optimizer in optimizers:
            optimizer.zero_grad()
        for loss in scaler.scale(losses):
            loss.backward()
        before = list(steps_taken)
        for w, optimizer in zip(weights, optimizers):
            if plan["clip"] is not None:
                scaler.unscale_(optimizer)
                clip(w.grad, plan["clip"])
            scaler.step(optimizer)
        scaler.update(what.get("new_scale"))
        if what.get("reload"):
            state = scaler.state_dict()
            scaler = torch.amp.GradScaler("cpu")
            scaler.load_state_dict(state)
        seen.append({"scale": scaler.get_scale(), "growth_tracker": scaler.state_dict()["_growth_tracker"],
                     "stepped": [now > then for now, then in zip(steps_taken, before)],
                     "weights": [value for w in weights for value in w.tolist()]})
    return seen


class GradScalerTest(unittest.TestCase):
    def follow(self, plan):
        """Compares, and returns the scales and how many steps were skipped."""
        ours, theirs = trace_of_refrain(plan), trace_of_torch(plan)
        self.assertEqual(len(ours), STEPS)
        for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            self.assertEqual(a, b, f"step {step}")
        return [step["scale"] for step in theirs], sum(not taken for step in theirs for taken in step["stepped"])

    def test_no_infs(self):
        scales, skipped = self.follow(plan(every(STEPS, run=0)))
        self.assertEqual((set(scales), skipped), ({65536.0}, 0))

    def test_isolated_infs(self):
        scales, skipped = self.follow(plan(every(37), growth_interval=10))
        self.assertEqual(skipped, 6)
        self.assertGreater(max(scales), 65536.0)

    def test_isolated_nans(self):
        self.assertEqual(self.follow(plan(every(50, "nan")))[1], 4)

    def test_runs_of_infs(self):
        scales, skipped = self.follow(plan(every(40, run=9), growth_interval=4, growth_factor=1.5, backoff_factor=0.3))
        self.assertEqual(skipped, 45)
        self.assertLess(min(scales), 1.0)

    def test_nothing_but_infs(self):
        scales, skipped = self.follow(plan(every(1)))
        self.assertEqual((scales[-1], skipped), (0.0, STEPS))

    def test_two_optimizers(self):
        for seed in range(3):
            _, skipped = self.follow(plan(at_random(seed, 2), growth_interval=3))
            self.assertGreater(skipped, 20)

    def test_clipping_between(self):
        for clip in (0.1, 1.0):
            self.follow(plan(at_random(4, 2), clip=clip, growth_interval=2))

    def test_growth_at_each_step_stops_before_inf(self):
        scales, _ = self.follow(plan(every(STEPS, run=0), growth_interval=1, init_scale=2.0 ** 100))
        self.assertEqual(scales[-1], 2.0 ** 127)

    def test_new_scales_and_reloaded_states(self):
        with_both = plan(at_random(5, 1), growth_interval=3)
        for step, scale in ((20, 128.0), (21, 3.5), (150, 1e-3)):
            with_both["steps"][step]["new_scale"] = scale
        for step in (7, 21, 90, 199):
            with_both["steps"][step]["reload"] = True
        scales, _ = self.follow(with_both)
        self.assertEqual(scales[20:22], [128.0, 3.5])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
