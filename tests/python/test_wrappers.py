"""Modules chosen by class and name, and `verify_checkpoint`."""

import copy
import inspect
import unittest

import refrain
import torch
from support import ResidualBlock, encoder, resnet, train
from torch import nn


class Wrappers(unittest.TestCase):
    def test_by_class_name_and_function(self):
        layer = nn.TransformerEncoderLayer
        for chosen in ({"classes": layer}, {"names": "layers.*"}, {"check_fn": lambda m: isinstance(m, layer)}, {"classes": (layer, nn.LayerNorm)}):
            model = encoder().model
            self.assertEqual(refrain.apply_activation_checkpointing(model, **chosen), ["layers.0", "layers.1", "layers.2"])
            refrain.reset_tape_counters()
            model(torch.randn(4, 24, 32)).sum().backward()
            self.assertGreater(refrain.tape_stats().replayed_ops, 0)

    def test_training_is_equal(self):
        for make, kind in ((encoder, nn.TransformerEncoderLayer), (resnet, ResidualBlock)):
            for options in ({}, {"policy": refrain.save_matmuls()}, {"policy": lambda op: refrain.CheckpointPolicy.PREFER_RECOMPUTE}):

                def wrapped():
                    program = make()
                    refrain.apply_activation_checkpointing(program.model, classes=kind, **options)
                    return program

                self.assertEqual(train(wrapped).bits, train(make).bits)

    def test_names_do_not_change_and_it_can_be_undone(self):
        model = encoder().model
        keys, forward = list(model.state_dict()), model.layers[0].forward
        refrain.apply_activation_checkpointing(model, names="layers.*")
        refrain.apply_activation_checkpointing(model, names="layers.*")  # once more does not nest
        self.assertEqual(list(model.state_dict()), keys)
        self.assertEqual(inspect.signature(model.layers[0].forward), inspect.signature(forward))  # trainers look at it
        self.assertEqual(refrain.remove_activation_checkpointing(model), 3)
        self.assertEqual(model.layers[0].forward, forward)
        self.assertEqual(refrain.remove_activation_checkpointing(model), 0)

    def test_a_copy_calls_itself(self):
        model = encoder().model
        refrain.apply_activation_checkpointing(model, names="layers.*")
        other = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        self.assertIs(other.layers[0].forward.inner.__self__, other.layers[0])
        self.assertEqual(other(torch.randn(2, 5, 32)).abs().max().item(), 0.0)

    def test_nothing_chosen(self):
        model = encoder().model
        with self.assertRaisesRegex(ValueError, "check_fn, classes or names"):
            refrain.apply_activation_checkpointing(model)
        with self.assertRaisesRegex(ValueError, "TransformerEncoder has no submodule that Conv2d, blocks"):
            refrain.apply_activation_checkpointing(model, classes=nn.Conv2d, names="blocks.*")


class Verify(unittest.TestCase):
    def test_a_module(self):
        block = ResidualBlock(8).train()
        before = {name: value.clone() for name, value in block.state_dict().items()}
        x = torch.randn(2, 8, 6, 6, requires_grad=True)
        generator = torch.get_rng_state()
        report = refrain.verify_checkpoint(nn.Sequential(block, nn.Dropout(0.2)), x)
        self.assertTrue(report.bit_equal, str(report))
        names = [tensor.name for tensor in report.tensors]
        for name in ("output 0", "gradient of input 0", "gradient of 0.path.0.weight", "buffer 0.path.1.running_mean", "generator cpu"):
            self.assertIn(name, names)
        self.assertIn("equal to the bit", str(report))
        for name, value in block.state_dict().items():
            self.assertTrue(torch.equal(value, before[name]), name)
        self.assertTrue(torch.equal(torch.get_rng_state(), generator))
        self.assertTrue(all(p.grad is None for p in block.parameters()))

    def test_arguments_of_any_kind(self):
        x, w = torch.randn(4, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True)
        report = refrain.verify_checkpoint(lambda pair, scale: {"y": (pair[0] @ pair[1]).sin() * scale["by"]}, (x, w), scale={"by": torch.tensor(2.0)})
        self.assertTrue(report.bit_equal, str(report))
        self.assertEqual([t.name for t in report.tensors], ["output 0", "gradient of input 0", "gradient of input 1", "generator cpu"])

    def test_a_function_that_is_another_each_time(self):
        calls = []

        def counted(x):
            calls.append(1)
            return (x * len(calls)).sin()

        report = refrain.verify_checkpoint(counted, torch.ones(3, requires_grad=True))
        self.assertFalse(report.bit_equal)
        self.assertIn("output 0: largest difference", str(report))

    def test_memory_refilled_by_pointer(self):
        frame = torch.zeros(16)
        kept = frame.untyped_storage()
        import ctypes

        address = kept.data_ptr()

        def refilled(x):
            y = (x.exp() + frame).sin()
            (ctypes.c_float * 16).from_address(address)[0] += 1.0
            return y

        report = refrain.verify_checkpoint(refilled, torch.randn(16, requires_grad=True))
        self.assertFalse(report.bit_equal)
        self.assertIn("CheckpointError", str(report))

    def test_what_the_function_raises(self):
        def broken(x):
            raise KeyError("mine")

        with self.assertRaises(KeyError):
            refrain.verify_checkpoint(broken, torch.ones(1))


if __name__ == "__main__":
    unittest.main()
