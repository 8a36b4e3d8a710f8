"""Lightning's Trainer, and torchao's tensors in place of parameters, gradients' inputs and optimizer state."""

import contextlib
import gc
import logging
import unittest
import warnings

import refrain
import torch
from support import Program, digest, train, unpatch_checkpoint
from torch import nn
from torch.utils.checkpoint import checkpoint

try:
    from zoo import programs  # noqa: F401  # what torchvision lacks beside a CPU torch

    import lightning
except ImportError:
    lightning = None
try:
    logging.getLogger("torchao").setLevel(logging.ERROR)  # says that its kernels are of another Python
    import torchao
except ImportError:
    torchao = None


def blocks(width=64, count=3):
    return [nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(0.1)) for _ in range(count)]


@unittest.skipIf(lightning is None, "no lightning: scripts/setup --zoo installs it")
class Lightning(unittest.TestCase):
    """A LightningModule whose blocks are under torch.utils.checkpoint, which `patch_torch` takes over."""

    @classmethod
    def setUpClass(cls):
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module="lightning")

        class Model(lightning.LightningModule):
            def __init__(self, checkpoints):
                super().__init__()
                self.layers = nn.ModuleList(blocks())
                self.head = nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 8))
                self.checkpoints, self.losses = checkpoints, []

            def forward(self, x):
                for layer in self.layers:
                    x = checkpoint(layer, x, use_reentrant=False) if self.checkpoints else layer(x)
                return self.head(x)

            def training_step(self, batch, _index):
                loss = self(batch[0]).float().pow(2).mean()
                self.losses.append(loss.detach().clone())
                return loss

            def configure_optimizers(self):
                return torch.optim.AdamW(self.parameters(), lr=1e-2)

        cls.model = Model

    def trained(self, checkpoints=False, scope=contextlib.nullcontext, **options):
        """Bits of losses, parameters and buffers after four updates."""
        torch.manual_seed(0)
        model = self.model(checkpoints)
        data = torch.utils.data.TensorDataset(torch.randn(4096, 64))
        loader = torch.utils.data.DataLoader(data, batch_size=512)
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_steps=4,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )
        torch.manual_seed(1)
        with scope():
            trainer.fit(model, loader)
        self.assertEqual(trainer.global_step, 4)
        return digest([*model.losses, *model.parameters(), *model.buffers()])

    def check(self, **options):
        expected = self.trained(**options)
        refrain.patch_torch()
        try:
            refrain.reset_tape_counters()
            self.assertEqual(self.trained(checkpoints=True, **options), expected)
            self.assertGreater(refrain.tape_stats().replayed_ops, 0)
        finally:
            unpatch_checkpoint()
        memory = refrain.MemoryScope()
        self.trained(scope=lambda: memory, **options)
        caps = []

        def cap():
            gc.collect()  # trainers of before are in cycles
            caps.append(refrain.MemoryCap(refrain.memory_stats().current + int(0.7 * memory.peak)))
            return caps[0]

        self.assertEqual(self.trained(scope=cap, **options), expected)
        self.assertGreater(caps[0].stats().recomputes, 0)
        self.assertEqual(self.trained(scope=lambda: refrain.MemoryBudget(0.5), **options), expected)

    def test_steps(self):
        self.check()

    def test_accumulation_and_clipping(self):
        self.check(accumulate_grad_batches=2, gradient_clip_val=0.5)

    def test_mixed_precision(self):
        self.check(precision="bf16-mixed")


@unittest.skipIf(torchao is None, "no torchao: scripts/setup --zoo installs it")
class TorchAO(unittest.TestCase):
    """Tensor subclasses that hold several tensors: each is a tensor of its own to the engine."""

    def check(self, make, **how):
        """Equal to the baseline, to the bit, in all modes."""
        baseline = train(make, **how)
        self.assertEqual(train(make, **how).bits, baseline.bits)
        refrain.reset_tape_counters()
        self.assertEqual(train(make, wrap=refrain.checkpoint, **how).bits, baseline.bits, "region")
        self.assertGreater(refrain.tape_stats().replayed_ops, 0)
        for fraction in (0.8, 0.6):
            capped = train(make, scope=lambda base: refrain.MemoryCap(base + int(fraction * baseline.peak)), **how)
            self.assertEqual(capped.bits, baseline.bits, f"cap {fraction}")
            self.assertLessEqual(capped.peak, fraction * baseline.peak)
        self.assertEqual(train(make, scope=lambda base: refrain.MemoryBudget(0.5), **how).bits, baseline.bits, "budget")

    @staticmethod
    def program(change):
        layers = blocks()
        model = nn.Sequential(*layers)
        change(model)
        return Program(model, layers, lambda: torch.randn(256, 64))

    def test_frozen_int8_weights(self):
        """As a quantized base with adapters: the bases' weights are `Int8Tensor`s, the biases are trained."""

        def make():
            def change(model):
                torchao.quantization.quantize_(model, torchao.quantization.Int8WeightOnlyConfig())
                self.assertIn("Int8Tensor", type(model[0][0].weight).__name__)
                for layer in model:
                    layer[0].weight.requires_grad_(False)

            return self.program(change)

        self.check(make)

    def test_quantization_aware_training(self):
        from torchao.quantization.qat import QATConfig

        config = torchao.quantization.Int8DynamicActivationIntxWeightConfig(
            weight_dtype=torch.int4, weight_granularity=torchao.quantization.PerGroup(32)
        )

        def make():
            return self.program(lambda model: torchao.quantization.quantize_(model, QATConfig(config, step="prepare")))

        self.assertIn("FakeQuantized", type(make().model[0][0]).__name__)
        self.check(make)

    def test_int8_training(self):
        """Weights are int8 with scales and are trained: the optimizer writes into the subclass."""
        from torchao.prototype.quantized_training import int8_weight_only_quantized_training

        def make():
            return self.program(
                lambda model: torchao.quantization.quantize_(model, int8_weight_only_quantized_training())
            )

        self.check(make, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05))

    def test_low_bit_optimizer_state(self):
        """Moments in fp8; its update is a compiled graph, which enters an `OpaqueScope`."""
        from torchao.optim import AdamWFp8

        self.check(lambda: self.program(lambda model: None), optimizer=lambda parameters: AdamWFp8(parameters, lr=1e-2))


if __name__ == "__main__":
    unittest.main()
