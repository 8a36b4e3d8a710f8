"""Whole stacks around the model: DDP, FSDP2 and DTensor over Gloo, transformers' Trainer, accelerate, export, fake tensors, the profiler, anomaly mode."""

import contextlib
import os
import tempfile
import time
import unittest

import refrain
import torch
import torch.distributed as dist
from support import digest, encoder, mlp, on_two_ranks, resnet, train, unpatch_checkpoint
from torch import nn


def _under_a_cap(level):
    return refrain.MemoryCap(level + (1 << 20))


def _in_a_budget(_level):
    """A budget, which plans the step after the first and follows the plan in the next."""
    return refrain.MemoryBudget(0.5)


def _momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def _bits(make, **how):
    return train(make, optimizer=_momentum, **how).bits


def _data_parallel(model):
    return nn.parallel.DistributedDataParallel(model, bucket_cap_mb=0.01)


def _fully_sharded(model):
    from torch.distributed.fsdp import fully_shard

    for block in model.layers:
        fully_shard(block)
    return fully_shard(model)


def _reduced_late(rank, scope):
    """The other rank comes late; meanwhile what is reduced could be evicted, and is read by a thread of Gloo's."""
    torch.manual_seed(rank)
    with scope(refrain.memory_stats().current) if scope else contextlib.nullcontext():
        given = torch.randn(32768).exp().sin()
        if rank == 1:
            time.sleep(0.3)
        work = dist.all_reduce(given, async_op=True)
        others = [torch.randn(32768).cos() for _ in range(12)]
        total = sum(other.sin().sum() for other in others)
        work.wait()
        return digest([given.clone(), total])


def _work(rank, port, folder, name):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.set_num_threads(1)
    try:
        if name == "collective":
            found = {"baseline": _reduced_late(rank, None), "cap": _reduced_late(rank, _under_a_cap)}
            torch.save(found, os.path.join(folder, f"{rank}.pt"))
            return
        kinds = {"ddp": (encoder, _data_parallel), "ddp_batch_norm": (resnet, _data_parallel), "fsdp": (encoder, _fully_sharded)}
        make, around = kinds[name]
        found = {"baseline": _bits(make, around=around)}
        for mode, wrap, scope in (
            ("region", refrain.checkpoint, None), ("cap", None, _under_a_cap), ("budget", None, _in_a_budget), ("region in cap", refrain.checkpoint, _under_a_cap),
        ):  # fmt: skip
            found[mode] = _bits(make, wrap=wrap, scope=scope, around=around)
        torch.save(found, os.path.join(folder, f"{rank}.pt"))
    finally:
        dist.destroy_process_group()


class TwoProcesses(unittest.TestCase):
    def check(self, name):
        for rank, found in enumerate(on_two_ranks(_work, name)):
            for mode, bits in found.items():
                self.assertEqual(bits, found["baseline"], f"{mode}, rank {rank}")

    def test_a_collective_under_way(self):
        self.check("collective")

    def test_ddp(self):
        self.check("ddp")

    def test_ddp_with_batch_norm(self):
        self.check("ddp_batch_norm")

    def test_fsdp2(self):
        self.check("fsdp")


class FullySharded(unittest.TestCase):
    """On one process. FSDP frees a module's parameters after its forward, by resizing their storages, and fills them again before its backward."""

    def setUp(self):
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    def tearDown(self):
        dist.destroy_process_group()

    def test_a_region_around_the_model(self):
        """One replay for all modules comes while the parameters of most are freed: an error, or right where it comes in time. Never other numbers."""

        def gradients(wrap):
            torch.manual_seed(0)
            program = encoder()
            model = _fully_sharded(program.model)
            torch.manual_seed(1)
            wrap(model, program.batch()).pow(2).mean().backward()
            return [p.grad.to_local().clone() for p in model.parameters()]

        expected = gradients(lambda f, x: f(x))
        try:
            found = gradients(refrain.checkpoint)
        except refrain.CheckpointError as error:
            self.assertRegex(str(error), "fully_shard|modified|overwritten|changed")
        else:
            self.assertEqual(digest(found), digest(expected))

    def test_a_storage_that_is_freed(self):
        w, x = torch.randn(64), torch.randn(64, requires_grad=True)
        kept = w.clone()

        def loss():
            return refrain.checkpoint(lambda: (x.exp() + w).sin()).sum()

        expected = torch.autograd.grad((x.exp() + w).sin().sum(), x)[0]
        one, other = loss(), loss()
        w.untyped_storage().resize_(0)
        with self.assertRaisesRegex(refrain.CheckpointError, "resized since forward: it has 0 of 256 bytes"):
            one.backward()
        w.untyped_storage().resize_(256)
        with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(w):
            w.copy_(kept)
        self.assertTrue(torch.equal(torch.autograd.grad(other, x)[0], expected))


class Modes(unittest.TestCase):
    """What torch can have switched on around a step."""

    def setUp(self):
        self.baseline = _bits(encoder)

    def assert_equal_under(self, scope):
        self.assertEqual(_bits(encoder, scope=lambda _level: scope()), self.baseline)
        self.assertEqual(_bits(encoder, wrap=refrain.checkpoint, scope=lambda _level: scope()), self.baseline)

    def test_profiler(self):
        self.assert_equal_under(lambda: torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]))

    def test_anomaly_mode(self):
        self.assert_equal_under(lambda: torch.autograd.detect_anomaly(check_nan=False))

    def test_deterministic_algorithms(self):
        @contextlib.contextmanager
        def deterministic():
            torch.use_deterministic_algorithms(True)
            try:
                yield
            finally:
                torch.use_deterministic_algorithms(False)

        self.assert_equal_under(deterministic)

    def test_saved_tensor_hooks_on_cpu(self):
        self.assert_equal_under(torch.autograd.graph.save_on_cpu)

    def test_dispatch_mode(self):
        from torch.utils._python_dispatch import TorchDispatchMode

        class Count(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                return func(*args, **(kwargs or {}))

        self.assert_equal_under(Count)

    def test_fake_tensors(self):
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode():
            program = mlp()
            program.under(refrain.checkpoint)
            result = program.model(program.batch())
            result.sum().backward()
            self.assertEqual(tuple(result.shape), (128, 64))
            self.assertEqual(tuple(program.blocks[0][0].weight.grad.shape), (64, 64))

    def test_export(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(8, 8)

            def forward(self, x):
                return refrain.checkpoint(lambda y: self.linear(y).relu(), x) * 2

        net, x = Net().eval(), torch.randn(3, 8)
        try:
            exported = torch.export.export(net, (x,))
        except Exception as error:  # an error that says why
            self.assertIn("refrain", str(error))
        else:
            self.assertTrue(torch.equal(exported.module()(x), net(x)))

    def test_make_fx(self):
        from torch.fx.experimental.proxy_tensor import make_fx

        w = torch.randn(4, 4, requires_grad=True)

        def step(x):
            return torch.autograd.grad(refrain.checkpoint(lambda y: (y @ w).sin(), x).sum(), w)[0]

        x = torch.randn(2, 4)
        traced = make_fx(step)(x)
        self.assertTrue(torch.equal(traced(x), step(x)))

    def test_custom_operator(self):
        @torch.library.custom_op("refrain_tests::shifted", mutates_args=())
        def shifted(x: torch.Tensor, by: float) -> torch.Tensor:
            return x.sin() + by

        shifted.register_autograd(
            lambda ctx, gradient: (gradient * ctx.saved_tensors[0].cos(), None),
            setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
        )
        x = torch.randn(16, requires_grad=True)

        def gradient(wrap):
            return torch.autograd.grad(wrap(lambda y: shifted(y.exp(), 0.5).tanh(), x).sum(), x)[0]

        expected = gradient(lambda f, y: f(y))
        self.assertTrue(torch.equal(gradient(refrain.checkpoint), expected))
        with refrain.MemoryCap("64MiB"):
            found = gradient(lambda f, y: f(y))
        self.assertTrue(torch.equal(found, expected))

    def test_dtensor(self):
        """On one process: each rank's tensors are plain ones to the engine."""
        from torch.distributed.tensor import DeviceMesh, Shard, distribute_tensor

        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
        store = dist.HashStore()
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            mesh = DeviceMesh("cpu", [0])
            torch.manual_seed(0)
            w = nn.Parameter(distribute_tensor(torch.randn(8, 8), mesh, [Shard(0)]))
            x = distribute_tensor(torch.randn(4, 8), mesh, [Shard(0)])

            def gradient(wrap):
                w.grad = None
                wrap(lambda y: (y @ w).relu() @ w, x).sum().backward()
                return w.grad.to_local().clone()

            self.assertTrue(torch.equal(gradient(refrain.checkpoint), gradient(lambda f, y: f(y))))
        finally:
            dist.destroy_process_group()


try:
    from zoo import programs  # noqa: F401  # what torchvision lacks beside a CPU torch

    import accelerate
    import transformers
except ImportError:
    transformers = None


@unittest.skipIf(transformers is None, "no transformers: scripts/setup --zoo installs it")
class Transformers(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        refrain.patch_torch()

    @classmethod
    def tearDownClass(cls):
        unpatch_checkpoint()

    @staticmethod
    def model():
        torch.manual_seed(0)
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=97, n_positions=64, n_embd=64, n_layer=3, n_head=4))

    @staticmethod
    def data():
        torch.manual_seed(1)
        rows = [torch.randint(1, 97, (32,)) for _ in range(16)]
        return [{"input_ids": row, "labels": row} for row in rows]

    def trainer(self, scope=None, **options):
        model = self.model()
        with tempfile.TemporaryDirectory() as folder:
            arguments = transformers.TrainingArguments(
                output_dir=folder, max_steps=4, per_device_train_batch_size=4, learning_rate=1e-3, use_cpu=True, report_to=[], save_strategy="no",
                logging_strategy="no", disable_tqdm=True, seed=3, dataloader_num_workers=0, **options,
            )  # fmt: skip
            trainer = transformers.Trainer(model=model, args=arguments, train_dataset=self.data())
            with scope() if scope else contextlib.nullcontext():
                trainer.train()
        return digest(list(model.parameters()))

    def test_trainer(self):
        baseline = self.trainer()
        refrain.reset_tape_counters()
        self.assertEqual(self.trainer(gradient_checkpointing=True), baseline)
        self.assertGreater(refrain.tape_stats().replayed_ops, 0)
        self.assertEqual(self.trainer(scope=lambda: refrain.MemoryCap(refrain.memory_stats().current + (5 << 20))), baseline)
        self.assertEqual(self.trainer(gradient_accumulation_steps=2, gradient_checkpointing=True), self.trainer(gradient_accumulation_steps=2))
        self.assertEqual(self.trainer(bf16=True, gradient_checkpointing=True), self.trainer(bf16=True))

    def test_accelerate(self):
        def trained(checkpointing):
            model = self.model()
            if checkpointing:
                model.gradient_checkpointing_enable()
            runner = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
            loader = torch.utils.data.DataLoader(self.data(), batch_size=4)
            model, optimizer, loader = runner.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3), loader)
            torch.manual_seed(5)
            for batch in loader:
                with runner.accumulate(model):
                    runner.backward(model(**batch).loss)
                    runner.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
            return digest(list(model.parameters()))

        self.assertEqual(trained(True), trained(False))


if __name__ == "__main__":
    unittest.main()
