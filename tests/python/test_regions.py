"""Regions: what the function sees, what torch's own checkpoint gets wrong, hooks, errors."""

import contextlib
import functools
import gc
import subprocess
import sys
import threading
import unittest

import refrain
import torch
from support import unpatch_checkpoint
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint as torch_checkpoint
from torch.utils.checkpoint import create_selective_checkpoint_contexts


def gradients(call, *parameters):
    for parameter in parameters:
        parameter.grad = None
    torch.manual_seed(1)
    result = call()
    result.pow(2).sum().backward()
    return [result.detach().clone()] + [parameter.grad.clone() for parameter in parameters]


class Regions(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Dropout(0.2), nn.Linear(32, 32), nn.GELU())
        self.x = torch.randn(16, 32)
        self.parameters = list(self.model.parameters())
        self.plain = gradients(lambda: self.model(self.x), *self.parameters)

    def assert_same(self, call):
        for found, expected in zip(gradients(call, *self.parameters), self.plain):
            self.assertTrue(torch.equal(found, expected))

    def test_self_test(self):
        refrain.self_test()

    def test_region_is_a_with_block(self):
        def call():
            with refrain.region():
                self.assertTrue(refrain.is_checkpointing())
                return self.model(self.x)

        self.assert_same(call)
        self.assertFalse(refrain.is_checkpointing())

    def test_arguments_and_results_are_anything(self):
        def block(table, *, scale):
            return {"y": self.model(table["x"]) * scale, "n": table["n"] + 1}

        found = {}

        def call():
            found.update(refrain.checkpoint(block, {"x": self.x, "n": 3}, scale=1.0))
            return found["y"]

        self.assert_same(call)
        self.assertEqual(found["n"], 4)

    def test_torchs_arguments_are_taken(self):
        for reentrant in (True, False, None):
            self.assert_same(
                lambda: refrain.checkpoint(self.model, self.x, use_reentrant=reentrant, determinism_check="none", debug=True, early_stop=False)
            )

    def test_checkpoint_sequential(self):
        self.assert_same(lambda: refrain.checkpoint_sequential(self.model, 2, self.x, use_reentrant=False))
        with self.assertRaisesRegex(ValueError, "expected 1 to 5"):
            refrain.checkpoint_sequential(self.model, 6, self.x)

    def test_no_rng_state(self):
        self.model.eval()
        self.plain = gradients(lambda: self.model(self.x), *self.parameters)
        self.assert_same(lambda: refrain.checkpoint(self.model, self.x, preserve_rng_state=False))
        self.model.train()
        with self.assertRaises(refrain.CheckpointError):
            refrain.checkpoint(self.model, self.x, preserve_rng_state=False).sum().backward()

    def test_without_gradients_nothing_is_recorded(self):
        before = refrain.tape_stats().recorded_ops
        with torch.no_grad():
            refrain.checkpoint(self.model, self.x)
        self.assertEqual(refrain.tape_stats().recorded_ops, before)

    def test_nothing_stays_alive(self):
        for _ in range(3):
            refrain.checkpoint(self.model, self.x).sum().backward()
        gc.collect()
        found = refrain.tape_stats()
        self.assertEqual((found.live_slots, found.live_regions), (0, 0))

    # ---- what a second call gets wrong

    def test_router_that_changes_its_mind(self):
        """A mixture of experts whose router was changed between forward and backward: torch fails or takes other experts."""
        experts = [nn.Linear(32, 32) for _ in range(2)]
        calls = []

        def mixture(x):
            calls.append(1)
            return experts[len(calls) % 2](x).tanh()

        def run(checkpoint):
            calls.clear()
            for expert in experts:
                expert.zero_grad()
            checkpoint(mixture, self.x).sum().backward()
            return len(calls), [None if p.grad is None else p.grad.tolist() for expert in experts for p in expert.parameters()]

        plain = run(lambda f, *args: f(*args))
        ours = run(refrain.checkpoint)
        theirs = run(lambda f, *args: torch_checkpoint(f, *args, use_reentrant=False))
        self.assertEqual(ours, plain)
        self.assertNotEqual(theirs, plain)

    def test_batch_norm_counts_once(self):
        norm = nn.BatchNorm1d(32)
        refrain.checkpoint(norm, self.x.requires_grad_()).sum().backward()
        self.assertEqual(norm.num_batches_tracked.item(), 1)
        torch_checkpoint(norm, self.x, use_reentrant=False).sum().backward()
        self.assertEqual(norm.num_batches_tracked.item(), 3)  # torch counts twice

    def test_autocast(self):
        def call(wrap):
            with torch.autocast("cpu", torch.bfloat16):
                return wrap(self.model, self.x).float()

        self.plain = gradients(lambda: call(lambda f, x: f(x)), *self.parameters)
        self.assert_same(lambda: call(refrain.checkpoint))

    # ---- hooks and other kinds of checkpoint

    def test_saved_tensors_hooks_still_work(self):
        packed = []
        pack = lambda tensor: packed.append(1) or tensor  # noqa: E731

        def inside(x):
            with saved_tensors_hooks(pack, lambda tensor: tensor):
                return self.model(x)

        refrain.checkpoint(self.model, self.x)  # the engine is wrapped by now
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            self.model(self.x)
        self.assertGreater(len(packed), 0)
        packed.clear()
        self.assert_same(lambda: refrain.checkpoint(inside, self.x))
        self.assertGreater(len(packed), 0)

    def test_nesting_with_torchs_checkpoint(self):
        theirs = functools.partial(torch_checkpoint, use_reentrant=False)
        self.assert_same(lambda: refrain.checkpoint(lambda x: theirs(self.model, x), self.x))
        self.assert_same(lambda: theirs(lambda x: refrain.checkpoint(self.model, x), self.x))
        self.assert_same(lambda: refrain.checkpoint(lambda x: refrain.checkpoint(self.model, x), self.x))
        x = self.x.clone().requires_grad_()
        self.assert_same(lambda: torch_checkpoint(lambda x: refrain.checkpoint(self.model, x), x, use_reentrant=True))

    def test_double_backward_and_grad(self):
        model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))

        def run(wrap):
            x = torch.linspace(-1, 1, 32).view(4, 8).requires_grad_()
            (first,) = torch.autograd.grad(wrap(model, x).pow(2).sum(), x, create_graph=True)
            return torch.autograd.grad(first.pow(2).sum(), list(model.parameters())[:2])

        for found, expected in zip(run(refrain.checkpoint), run(lambda f, x: f(x))):
            self.assertTrue(torch.equal(found, expected))

    def test_python_functions(self):
        class Scale(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, k):
                y = (x * k).exp()
                ctx.save_for_backward(x, y)
                ctx.k = k
                return y

            @staticmethod
            def backward(ctx, gradient):
                x, y = ctx.saved_tensors
                return gradient * y * ctx.k, None

        block = lambda x: Scale.apply(self.model(x), 0.5).sin()  # noqa: E731
        self.plain = gradients(lambda: block(self.x), *self.parameters)
        self.assert_same(lambda: refrain.checkpoint(block, self.x))

    def test_backward_on_another_thread(self):
        for parameter in self.parameters:
            parameter.grad = None
        torch.manual_seed(1)
        y = refrain.checkpoint(self.model, self.x)
        thread = threading.Thread(target=lambda: y.pow(2).sum().backward())
        thread.start()
        thread.join()
        for parameter, expected in zip(self.parameters, self.plain[1:]):
            self.assertTrue(torch.equal(parameter.grad, expected))

    def test_threads_with_regions_of_their_own(self):
        self.model.eval()
        plain = gradients(lambda: self.model(self.x), *self.parameters)[1:]
        found = []

        def work():
            for _ in range(20):
                y = refrain.checkpoint(self.model, self.x, policy=lambda op: op.name == "aten::addmm" and 0 or 3)
                found.append(torch.autograd.grad(y.pow(2).sum(), self.parameters))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(len(found), 80)
        for some in found:
            for one, expected in zip(some, plain):
                self.assertTrue(torch.equal(one, expected))

    # ---- policies

    def replayed(self, **options):
        refrain.reset_tape_counters()
        self.assert_same(lambda: refrain.checkpoint(self.model, self.x, **options))
        return refrain.tape_stats().replayed_ops

    def test_policies(self):
        all_of_them = self.replayed()
        self.assertEqual(self.replayed(policy=refrain.everything_saveable()), 0)
        some = self.replayed(policy=refrain.save_matmuls())
        self.assertTrue(0 < some < all_of_them)
        self.assertEqual(self.replayed(policy=refrain.save_ops([torch.ops.aten.addmm.default])), some)
        self.assertEqual(self.replayed(policy=lambda op: refrain.CheckpointPolicy.MUST_SAVE if op.name == "aten::addmm" else 3), some)
        for given in ([torch.ops.aten.addmm.default], lambda ctx, op, *args, **kwargs: op == torch.ops.aten.addmm.default and args[1].shape[0] == 16):
            self.assertEqual(self.replayed(context_fn=functools.partial(create_selective_checkpoint_contexts, given)), some)

    def test_what_a_policy_sees(self):
        seen = []

        def policy(op):
            seen.append((op.name, op.overload, op.position, op.random, op.output_bytes, op.inputs, op.outputs, op.count("k")))
            return 3

        refrain.checkpoint(lambda x: x.mul(2.0).double().sin(), self.x, policy=policy)
        self.assertEqual([entry[0] for entry in seen], ["aten::mul", "aten::_to_copy", "aten::sin"])
        self.assertEqual(seen[2][6], [((16, 32), torch.float64, "cpu")])
        self.assertEqual([entry[7] for entry in seen], [0, 1, 2])

    def test_a_policys_exception_arrives(self):
        def policy(op):
            raise KeyError("mine")

        with self.assertRaisesRegex(KeyError, "mine"):
            refrain.checkpoint(self.model, self.x, policy=policy)
        self.assertFalse(refrain.is_checkpointing())

    def test_names(self):
        def block(x):
            return self.model[4](self.model[3](refrain.checkpoint_name(self.model[:3](x), "middle")))

        self.assert_same(lambda: refrain.checkpoint(block, self.x, policy=refrain.save_only_these_names("middle")))

    # ---- errors

    def test_the_functions_exception_passes(self):
        def block(x):
            self.model(x)
            raise KeyError("mine")

        with self.assertRaisesRegex(KeyError, "mine"):
            refrain.checkpoint(block, self.x)
        self.assertFalse(refrain.is_checkpointing())
        self.assert_same(lambda: refrain.checkpoint(self.model, self.x))

    def test_an_exception_brings_no_advice(self):
        code = "import refrain, torch\ndef f(x): x * x; raise KeyError\ntry: refrain.checkpoint(f, torch.ones(2, requires_grad=True))\nexcept KeyError: print('ok')"
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
        self.assertEqual((done.stdout, done.stderr), ("ok\n", ""))

    def test_checkpoint_error(self):
        for backward in (lambda y: y.backward(), lambda y: torch.autograd.grad(y, p)):
            p, w = torch.randn(8, 8, requires_grad=True), torch.randn(8, 8)
            y = refrain.checkpoint(lambda: (p * w).sin().exp(), preserve_rng_state=True).sum()
            thread = threading.Thread(target=lambda: w.add_(1))  # not seen: another thread
            thread.start()
            thread.join()
            with self.assertRaisesRegex(refrain.CheckpointError, "modified by an inplace operation|changed since"):
                backward(y)
        self.assertTrue(issubclass(refrain.CheckpointError, RuntimeError))

    def test_bad_input(self):
        with self.assertRaisesRegex(ValueError, "addmn"):
            refrain.save_ops(["aten::addmn"])
        with self.assertRaisesRegex(ValueError, "never called again"):
            refrain.checkpoint(self.model, self.x, context_fn=lambda: (contextlib.nullcontext(), contextlib.nullcontext()))
        with self.assertRaises(TypeError):
            refrain.checkpoint(self.model, self.x, policy=3)
        with self.assertRaises(TypeError):
            refrain.save_ops("aten::mm")
        with self.assertRaisesRegex(ValueError, "vmap"):
            torch.func.vmap(lambda x: refrain.checkpoint(torch.sin, x))(self.x.requires_grad_())

    def test_exception_in_a_hook(self):
        x = self.x.clone().requires_grad_()
        x.register_hook(lambda gradient: 1 / 0)
        with self.assertRaises(ZeroDivisionError):
            refrain.checkpoint(self.model, x).sum().backward()

    def test_print_saved(self):
        text = refrain.saved_text(lambda: refrain.checkpoint(self.model, self.x))
        self.assertIn("recomputed", text)


class Patching(unittest.TestCase):
    def test_patch_and_unpatch(self):
        from torch.utils import checkpoint as module

        theirs, engine = module.checkpoint, torch.autograd.Variable._execution_engine
        ours = refrain.checkpoint
        refrain.patch_torch()
        self.assertIsNot(module.checkpoint, theirs)
        self.assertIsNot(globals()["torch_checkpoint"], theirs)  # imported by name
        refrain.patch_torch()
        refrain.unpatch_torch()
        self.assertIs(module.checkpoint, theirs)
        self.assertIs(globals()["torch_checkpoint"], theirs)
        self.assertIs(refrain.checkpoint, ours)
        with self.assertRaisesRegex(RuntimeError, "_execution_engine is not ours"):
            refrain.self_test()
        self.assertIs(torch.autograd.Variable._execution_engine, engine._inner)
        refrain.patch_torch()
        refrain.self_test()
        unpatch_checkpoint()

    def test_not_while_a_cap_is_open(self):
        with refrain.MemoryCap("1GiB"):
            with self.assertRaisesRegex(RuntimeError, "close it first"):
                refrain.unpatch_torch()


if __name__ == "__main__":
    unittest.main()
