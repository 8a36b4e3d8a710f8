"""One model under torch.compile's budgets and ours, in one process and interleaved; prints a JSON line for each thing
learnt, the last with all.

    compile_peer.py MODEL [--budgets 1.0,0.7,...] [--asked N] [--rounds N] [--threads N] [--small]

MODEL is one of torch_peer.py, or gpt2 or llama (transformers, random, from their configurations). Forward and loss are
one compiled function. For each of torch's budgets,
ours is asked for as many bytes as that one peaked at; ours is also asked for its lowest peak, and for N budgets in
bytes, evenly from its lowest to its plain
peak. Each is compiled with torch's caches off, and run until its peak is settled. Then rounds: one step that settles
and one that is timed of each, in turn. Peaks are
the allocator's bytes over the level before the step, of which gradients are none. Gradients are compared with eager's.
"""

import argparse
import gc
import importlib.machinery
import importlib.util
import json
import os
import statistics
import sys
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / path) for path in ("python", "bench", "bench/peers", "tests/python", "tests/python/zoo")]
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
warnings.filterwarnings("ignore")

import torch  # noqa: E402
import torch_peer  # noqa: E402

import refrain  # noqa: E402

TRANSFORMERS = ("gpt2", "llama")


def from_bench_python(name, **sizes):
    """A model of bench/python/run, which has no name that can be imported."""
    path = str(ROOT / "bench/python/run")
    loader = importlib.machinery.SourceFileLoader("bench_python", path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("bench_python", loader))
    loader.exec_module(module)
    return getattr(module, name)(**sizes).model


class Program:
    """A model, and a step of it by a function that may be compiled."""

    def __init__(self, name, small):
        torch.manual_seed(0)
        if name in TRANSFORMERS:
            sizes = (
                {"width": 192, "layers": 3, "batch": 2, "length": 64}
                if small
                else {"width": 384, "layers": 6, "batch": 4, "length": 128}
            )
            self.model = from_bench_python(name, **sizes).train()
            ids = torch.randint(1, 1000, (sizes["batch"], sizes["length"]))
            self.input, self.prepare = ids, lambda x: x
            self.source = "def loss(x): return model(input_ids=x, labels=x, use_cache=False).loss"
            self.names = {"model": self.model}
        else:
            self.model, self.input, target, loss_of = torch_peer.build_model(name)
            self.model.train()
            self.prepare = torch_peer.trainable_copy if target is None else lambda x: x
            self.source = "def loss(x): return loss_of(model(x, call), target)"
            self.names = {
                "model": self.model,
                "loss_of": loss_of,
                "target": target,
                "call": lambda layer, *inputs: layer(*inputs),
            }
        self.buffers = [buffer.clone() for buffer in self.model.buffers()]

    def loss(self):
        """Another function each time: Dynamo keeps what it compiled by code."""
        names = dict(self.names)
        exec(self.source, names)
        return names["loss"]

    def restore(self):
        with torch.no_grad():
            for buffer, start in zip(self.model.buffers(), self.buffers):
                buffer.copy_(start)

    def step(self, call):
        """@return milliseconds, peak bytes"""
        self.model.zero_grad(set_to_none=True)
        gc.collect()
        x = self.prepare(self.input)
        with refrain.MemoryScope() as memory:
            start = time.perf_counter()
            loss = call(x)
            loss.backward()
            taken = time.perf_counter() - start
        del loss
        return 1e3 * taken, memory.peak

    def gradients(self, call):
        self.restore()
        torch.manual_seed(1)
        self.step(call)
        return [p.grad.clone() for p in self.model.parameters() if p.grad is not None]


def furthest(found, expected):
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in zip(found, expected))


class Bench:
    def __init__(self, options):
        self.options, self.program = options, Program(options.model, options.small)
        self.calls, self.rows = {}, {}
        eager = self.program.loss()
        self.program.step(eager)
        self.expected = self.program.gradients(eager)
        ms, peak = self.program.step(eager)
        self.add("eager", eager, peak_bytes=peak, first_s=ms / 1e3)

    def add(self, name, call, **learnt):
        self.calls[name], self.rows[name] = call, {"name": name, **learnt}
        print(json.dumps(self.rows[name]), flush=True)

    def compiled(self, options):
        """@return  the function, seconds until its first step was done, its peak, how far its gradients are from
        eager's"""
        call = torch.compile(self.program.loss(), options=options)
        start = time.perf_counter()
        difference = furthest(self.program.gradients(call), self.expected)
        return call, time.perf_counter() - start, difference

    def torchs(self, budget):
        import torch._functorch.config as config

        config.activation_memory_budget = budget
        call, first, difference = self.compiled(None)
        config.activation_memory_budget = 1.0
        peak = max(self.program.step(call)[1] for _ in range(2))
        self.add(f"torch {budget}", call, budget=budget, peak_bytes=peak, first_s=first, gradients=difference)
        return peak

    def ours(self, name, budget, **more):
        options = refrain.compile_options(budget)
        call, first, _ = self.compiled(options)
        until = time.perf_counter()
        for _ in range(8):
            if options.report.is_settled:
                break
            self.program.step(call)
        settled = first + time.perf_counter() - until
        difference = furthest(self.program.gradients(call), self.expected)
        peak = max(self.program.step(call)[1] for _ in range(2))
        report, graphs = options.report, options.report.graphs
        leasts = [graph.least for graph in graphs if graph.least is not None]
        learnt = {
            "asked_bytes": report.target,
            "peak_bytes": peak,
            "predicted_bytes": report.predicted,
            "fits": report.fits,
            "replans": report.replans,
            "first_s": first,
            "settled_s": settled,
            "planning_s": sum(graph.planning_s for graph in graphs),
            "measuring_s": sum(graph.measuring_s for graph in graphs),
            "gradients": difference,
            "least_bytes": min(leasts, default=None),
            "recomputed": sum(sum(graph.recomputed.values()) for graph in graphs),
            "fallbacks": [graph.fallback for graph in graphs if graph.fallback],
        }
        self.add(name, call, **learnt, **more)
        return self.rows[name]

    def run(self):
        peaks = {budget: self.torchs(budget) for budget in self.options.budgets}
        plain = max(peaks.values())
        least = self.ours("ours lowest", 0.0)["peak_bytes"]
        for budget, peak in peaks.items():
            self.ours(f"ours at torch {budget}", peak, against=f"torch {budget}")
        for number in range(self.options.asked):
            asked = int(least + (plain - least) * (number + 1) / self.options.asked)
            self.ours(f"asked {number}", asked, is_sweep=True)
        return self.timed()

    def timed(self):
        times = {name: [] for name in self.calls}
        order = list(self.calls)
        for number in range(self.options.rounds):
            turn = number % len(order)
            for name in order[turn:] + order[:turn]:
                self.program.step(self.calls[name])
                ms, peak = self.program.step(self.calls[name])
                times[name].append(ms)
                self.rows[name]["peak_bytes"] = max(self.rows[name]["peak_bytes"], peak)
        for name, row in self.rows.items():
            low, middle, high = statistics.quantiles(times[name], n=4)
            row |= {"ms": middle, "ms_low": low, "ms_high": high}
            if "against" in row:
                ratios = [a / b for a, b in zip(times[name], times[row["against"]])]
                row["step_ratio"] = dict(zip(("low", "median", "high"), statistics.quantiles(ratios, n=4)))
        return list(self.rows.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--budgets", default="1.0,0.7,0.5,0.3,0.0")
    parser.add_argument("--asked", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    options.budgets = [float(budget) for budget in options.budgets.split(",")]
    torch.set_num_threads(options.threads)
    refrain.install_memory_tracking()
    import torch._functorch.config as functorch_config
    import torch._inductor.config as inductor_config

    functorch_config.enable_autograd_cache = inductor_config.fx_graph_cache = False
    torch._dynamo.config.recompile_limit = 64
    bench = Bench(options)
    rows = bench.run()
    parameters = sum(p.numel() for p in bench.program.model.parameters())
    print(
        json.dumps(
            {
                "done": rows,
                "parameters": parameters,
                "input_shape": list(bench.program.input.shape),
                "torch": torch.__version__,
                "python": sys.version.split()[0],
            }
        )
    )


if __name__ == "__main__":
    main()
