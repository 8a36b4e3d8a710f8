"""Timelines, breakdowns and explanations: their numbers are the allocator's, and their pictures the tool's."""

import contextlib
import html
import json
import os
import re
import subprocess
import tempfile
import unittest
from pathlib import Path

import refrain
import torch
from support import mlp, resnet
from torch import nn

TOOL = Path(refrain._library.path).resolve().parent.parent / "bin/refrain"


class Net(nn.Module):
    """Modules in a list, one of them called twice, so that paths are more than the modules that are called."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 32)) for _ in range(3)])

    def forward(self, x):
        for layer in [*self.layers, self.layers[0]]:
            x = layer(x)
        return x


def recorded(wrap=None, **options):
    """A step of `Net` under a timeline, after one without, and the highest level beside it."""
    torch.manual_seed(0)
    model, x = Net(), torch.randn(64, 32)
    optimizer = torch.optim.AdamW(model.parameters())
    if wrap is not None:
        for layer in model.layers:
            layer.forward = lambda *args, _forward=layer.forward: wrap(_forward, *args)

    def step():
        model(x).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    level = refrain.memory_stats().current
    with refrain.MemoryScope() as memory, refrain.MemoryTimeline(model, optimizer, **options) as timeline:
        timeline.annotate("input", x, "input")
        step()
    return model, timeline, level + memory.peak


def page_of(document):
    """What the tool draws of a document."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "a.json"), Path(folder, "a.html")
        source.write_text(json.dumps(document))
        subprocess.run([TOOL, "report", source, "--html", target], check=True, capture_output=True)
        return target.read_text()


class Timeline(unittest.TestCase):
    def test_its_numbers_are_the_allocators(self):
        model, timeline, peak = recorded()
        report = timeline.report
        self.assertEqual(report.peak_bytes, peak)
        self.assertEqual(sum(report.peak_by_kind.values()), peak)
        self.assertEqual(sum(report.blocks[i].bytes for i in report.peak_blocks), peak)
        parameters = sum(p.nbytes for p in model.parameters())
        self.assertEqual(report.peak_by_kind["parameter"], parameters)
        states = sum(block.bytes for block in report.blocks if block.kind == "optimizer_state")
        self.assertEqual(states, 2 * parameters + 4 * len(list(model.parameters())))
        self.assertEqual(report.peak_by_kind["input"], 64 * 32 * 4)
        blocks, level = report.blocks, report.base_bytes
        for event in report.events:
            level += (-1 if event.is_free else 1) * blocks[event.block].bytes
            self.assertEqual(event.level, level)
        self.assertEqual(report.allocations, sum(not event.is_free for event in report.events))

    def test_names(self):
        _, timeline, _ = recorded()
        blocks = timeline.report.blocks
        kept = {(block.module, block.op) for block in blocks if block.kind == "activation_kept"}
        self.assertTrue({("layers.0.2", "aten::linear"), ("layers.2.1", "aten::tanh")} <= kept, kept)
        gradients = {block.module for block in blocks if block.kind == "gradient"}
        self.assertEqual(
            gradients, {f"layers.{i}.{j}.{name}" for i in range(3) for j in (0, 2) for name in ("weight", "bias")}
        )
        self.assertIn(
            "layers.0.0.weight exp_avg", {block.module for block in blocks if block.kind == "optimizer_state"}
        )
        self.assertEqual([span.phase for span in timeline.report.phases], ["forward", "backward", "optimizer"])

    def test_recomputation(self):
        _, timeline, _ = recorded(wrap=refrain.checkpoint, strategy="per layer")
        report = timeline.report
        self.assertIn("recompute", {span.phase for span in report.phases})
        again = [block for block in report.blocks if block.kind == "recomputed"]
        self.assertIn("layers.1.1", {block.module for block in again})
        self.assertIn("strategy per layer", report.html())

    def test_it_leaves_nothing(self):
        model, timeline, _ = recorded()
        self.assertFalse(any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()))
        self.assertEqual(refrain._torch_patches.after_backward, [])
        with self.assertRaisesRegex(RuntimeError, "not recording"):
            timeline.stop()
        with self.assertRaisesRegex(RuntimeError, "not recording"):
            timeline.annotate("input", torch.ones(1))

    def test_a_step_that_fails(self):
        model = Net()
        with self.assertRaises(RuntimeError):
            with refrain.MemoryTimeline(model) as timeline:
                model(torch.randn(3, 33))
        with refrain.MemoryTimeline(model) as timeline:
            model(torch.randn(3, 32))
        self.assertIn("layers.0.1", {block.module for block in timeline.report.blocks})

    def test_one_at_a_time(self):
        with refrain.MemoryTimeline() as timeline, self.assertRaisesRegex(ValueError, "another timeline is recording"):
            refrain.MemoryTimeline().__enter__()
        with self.assertRaisesRegex(ValueError, "expected one of parameter"):
            timeline.annotate("weights", [])
        with self.assertRaisesRegex(ValueError, "expected one of forward"):
            refrain.PhaseScope("update")
        self.assertEqual(timeline.report.allocations, 0)

    def test_phase(self):
        with refrain.MemoryTimeline() as timeline, refrain.PhaseScope("optimizer"):
            torch.ones(100)
        self.assertEqual([block.phase for block in timeline.report.blocks if not block.preexisting], ["optimizer"])

    def test_results_are_the_same(self):
        def gradients(scope):
            torch.manual_seed(0)
            program = resnet()
            with scope(program.model):
                program.model(program.batch()).pow(2).mean().backward()
            return [p.grad for p in program.model.parameters()] + list(program.model.buffers())

        watched, plain = gradients(refrain.MemoryTimeline), gradients(lambda model: contextlib.nullcontext())
        self.assertTrue(all(torch.equal(one, other) for one, other in zip(watched, plain)))

    def test_under_a_cap(self):
        program = mlp()
        x = program.batch()
        program.model(x).sum().backward()
        with refrain.MemoryCap(refrain.memory_stats().current + 400_000) as cap:
            with refrain.MemoryTimeline(program.model) as timeline:
                program.model(x).sum().backward()
        self.assertGreater(cap.stats().recomputes, 0)
        self.assertLessEqual(timeline.report.peak_bytes, cap.stats().limit)
        self.assertIn("recompute", {span.phase for span in timeline.report.phases})


class Pictures(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def test_the_page_is_the_tools(self):
        _, timeline, _ = recorded()
        self.assertEqual(timeline.report.html(), page_of(timeline.report.document()))

    def test_files(self):
        _, timeline, _ = recorded()
        report = timeline.report
        for name in ("a.html", "a.json", "a.trace"):
            (self.folder / name).write_text("old")
        (self.folder / "a.html").chmod(0o640)
        report.write_html(self.folder / "a.html")
        report.write_json(str(self.folder / "a.json"))
        report.write_trace(self.folder / "a.trace")
        self.assertEqual((self.folder / "a.html").read_text(), report.html())
        self.assertEqual((self.folder / "a.html").stat().st_mode & 0o777, 0o640)
        self.assertEqual(json.loads((self.folder / "a.json").read_text())["peak_bytes"], report.peak_bytes)
        self.assertTrue(json.loads((self.folder / "a.trace").read_text())["traceEvents"])
        self.assertEqual(sorted(os.listdir(self.folder)), ["a.html", "a.json", "a.trace"])

    def test_a_file_that_cannot_be_written(self):
        _, timeline, _ = recorded()
        with self.assertRaises(OSError):
            timeline.report.write_html(self.folder / "no" / "a.html")
        with self.assertRaisesRegex(OSError, "no regular file"):
            timeline.report.write_html(self.folder)
        self.assertEqual(os.listdir(self.folder), [])

    def test_in_a_notebook(self):
        _, timeline, _ = recorded()
        shown = timeline.report._repr_html_()
        inside = re.fullmatch(r'<iframe srcdoc="([^"]*)" style="[^"]*" title="refrain"></iframe>', shown)[1]
        self.assertEqual(html.unescape(inside), timeline.report.html())
        self.assertIn("<svg", html.unescape(inside))

    def test_the_drawings_library_stands_alone(self):
        """It exports its two functions, and needs neither LibTorch nor the library."""
        from refrain import _report

        path = _report._drawing()._name
        lines = subprocess.run(["nm", "-D", path], check=True, capture_output=True, text=True).stdout.splitlines()
        symbols = [line.split()[-2:] for line in lines]
        self.assertEqual(
            {name for kind, name in symbols if kind == "T"}, {"refrain_report_free", "refrain_report_html"}
        )
        self.assertFalse([name for kind, name in symbols if kind == "U" and ("c10" in name or "N2at" in name)])

    def test_a_document_that_is_none(self):
        from refrain._report import page

        with self.assertRaisesRegex(ValueError, 'found kind "bnch" version 1'):
            page([{"kind": "bnch", "version": 1, "model": "a", "config": {}, "machine": {}}])


class Breakdown(unittest.TestCase):
    def found(self, optimizer=torch.optim.AdamW, **options):
        torch.manual_seed(0)
        self.model, x = Net(), torch.randn(16, 32)
        return refrain.breakdown(
            self.model,
            optimizer(self.model.parameters(), lr=1e-3, **options),
            lambda n: self.model(x[:n]).pow(2).mean(),
            (2, 8, 16),
        )

    def test_estimates_are_what_is_measured(self):
        found = self.found()
        parameters = sum(p.nbytes for p in self.model.parameters())
        for row in found.rows:
            self.assertEqual((row.estimated.parameters, row.measured.parameters), (parameters, parameters))
            self.assertEqual((row.estimated.gradients, row.measured.gradients), (parameters, parameters))
            self.assertEqual(row.estimated.optimizer_states, 2 * parameters)
            self.assertLess(row.measured.optimizer_states - row.estimated.optimizer_states, 100)  # counts of steps
            self.assertLess(abs(row.measured.activations - row.estimated.activations), 100)
            self.assertGreaterEqual(row.peak, row.measured.fixed)
        at = found.crossover_batch
        self.assertGreater(found.activations.at(at), found.rows[0].estimated.fixed)
        self.assertLessEqual(found.activations.at(at - 1), found.rows[0].estimated.fixed)

    def test_state_that_is_there(self):
        """Before the first step, as some optimizers make it, and after it."""
        for optimizer_type in (torch.optim.Adam, torch.optim.Adagrad, torch.optim.RMSprop):
            model = torch.nn.Linear(8, 8)
            optimizer = optimizer_type(model.parameters())
            before = refrain.estimate_fixed(model, optimizer).optimizer_states
            model(torch.ones(2, 8)).sum().backward()
            optimizer.step()
            bits = [value.clone() for state in optimizer.state.values() for value in state.values()]
            self.assertEqual(refrain.estimate_fixed(model, optimizer).optimizer_states, before)
            after = [value for state in optimizer.state.values() for value in state.values()]
            self.assertTrue(all(torch.equal(a, b) for a, b in zip(after, bits)))

    def test_optimizers(self):
        for optimizer, options, copies in (
            (torch.optim.SGD, {}, 0), (torch.optim.SGD, {"momentum": 0.9}, 1), (torch.optim.Adam, {"amsgrad": True}, 3),
            (torch.optim.Adagrad, {}, 1),
            (torch.optim.AdamW, {"fused": True}, 2), (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}, 3),
        ):  # fmt: skip
            row = self.found(optimizer, **options).rows[0]
            self.assertEqual(row.estimated.optimizer_states, copies * row.estimated.parameters, optimizer)
            self.assertLess(row.measured.optimizer_states - row.estimated.optimizer_states, 100, optimizer)

    def test_picture(self):
        found = self.found()
        self.assertEqual(found.html(), page_of(found.document()))
        self.assertIn("activations exceed the fixed cost", str(found))

    def test_refused(self):
        with self.assertRaisesRegex(ValueError, "at least one"):
            refrain.breakdown(Net(), None, None, ())
        with self.assertRaisesRegex(ValueError, "the second larger"):
            refrain.measure_activations(None, 4, 4)

        class Own(torch.optim.Optimizer):
            def step(self):
                raise KeyError("data_ptr")

        model = Net()
        with self.assertRaisesRegex(ValueError, "state of Own is not known without a step .KeyError: 'data_ptr'"):
            refrain.estimate_fixed(model, Own(model.parameters(), {}))


class Explanations(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(0)
        self.model, self.x = Net(), torch.randn(64, 32)

    def step(self):
        self.model.zero_grad(set_to_none=True)
        self.model(self.x).pow(2).mean().backward()

    def test_saved_tensors(self):
        found = refrain.saved_tensors(refrain.checkpoint, self.model.layers[1], self.x)
        self.assertEqual((found.regions, found.kept_bytes), (1, 0))
        again = [
            tensor for tensor in found.tensors if not (tensor.kept or tensor.referenced_elsewhere or tensor.shared)
        ]
        self.assertEqual(
            [(t.op, t.sizes, t.dtype, t.bytes) for t in again], [("aten::tanh", (64, 64), torch.float32, 64 * 64 * 4)]
        )
        self.assertEqual(found.recomputed_bytes, 64 * 64 * 4)
        self.assertEqual(str(found), refrain.saved_text(refrain.checkpoint, self.model.layers[1], self.x))
        kept = refrain.saved_tensors(self.model.layers[1], self.x)
        self.assertEqual((kept.regions, kept.recomputed_bytes, kept.kept_bytes), (0, 0, 64 * 64 * 4))
        self.assertIn("recomputed: 2 operators", found._repr_html_())

    def test_a_plan(self):
        self.step()
        trace = refrain.profile(self.step, modules_of=self.model)
        baseline = trace.explain(3)
        self.assertEqual((baseline.peak, baseline.baseline_peak), (trace.peak, trace.peak))
        self.assertEqual((len(baseline.holders), baseline.recomputed_operators, baseline.scopes), (3, 0, []))
        plan = refrain.plan_step(trace, 0.2, time_limit=0.2)
        found = plan.explain()
        self.assertEqual((found.peak, found.baseline_peak), (plan.peak, trace.peak))
        self.assertAlmostEqual(found.added_ms, plan.added_ms)
        self.assertGreater(found.recomputed_operators, 0)
        self.assertEqual(sum(scope.runs for scope in found.scopes), found.recomputed_operators)
        self.assertTrue(any(scope.scope.startswith("layers.") for scope in found.scopes), found.scopes)
        self.assertIn("dropped and recomputed, by module", str(found))
        with self.assertRaisesRegex(ValueError, "most_holders"):
            plan.explain(-1)
        self.assertFalse(any(module._forward_hooks for module in self.model.modules()))


if __name__ == "__main__":
    unittest.main()
