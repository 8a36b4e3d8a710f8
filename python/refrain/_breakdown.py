"""Where the memory of a training step goes, and from which batch on activations are the larger part."""

from __future__ import annotations

import collections
import ctypes
import math
from dataclasses import asdict, dataclass
from typing import Any, Callable, Sequence

import torch

from ._library import library
from ._report import Document, machine
from ._saved import saved_tensors
from ._timeline import MemoryTimeline, MemoryTimelineReport

__all__ = [
    "ActivationCost",
    "Breakdown",
    "BreakdownRow",
    "MemoryParts",
    "breakdown",
    "estimate_fixed",
    "measure_activations",
    "measured_parts",
]

Loss = Callable[[int], torch.Tensor]


@dataclass(frozen=True)
class MemoryParts:
    """Bytes of a step by what they are for. Buffers and input are in none of them."""

    parameters: int = 0
    gradients: int = 0
    optimizer_states: int = 0
    activations: int = 0  #: kept by forward for backward
    temporaries: int = 0  #: everything else that is allocated and freed; 0 in estimates

    @property
    def fixed(self) -> int:
        """What a step has at any batch: all but activations and temporaries."""
        return self.parameters + self.gradients + self.optimizer_states


@dataclass(frozen=True)
class ActivationCost:
    """What forward keeps, as a straight line over the batch. Exact where the model treats its examples alike."""

    per_example: float  #: bytes
    fixed: float  #: bytes at batch 0

    def at(self, batch: int) -> int:
        """Bytes that forward keeps at `batch` examples."""
        return round(self.fixed + self.per_example * batch)

    def first_batch_exceeding(self, bytes: int) -> int | None:
        """The smallest batch at which activations are more than `bytes`; None if they never are."""
        if self.at(1) > bytes:
            return 1
        if self.per_example <= 0:
            return None
        batch = max(1, math.floor((bytes - self.fixed) / self.per_example))
        while self.at(batch) <= bytes:
            batch += 1
        return batch


class _Parts(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64) for name in ("parameters", "gradients", "optimizer_states", "activations", "temporaries")
    ]


def measured_parts(step: MemoryTimelineReport) -> MemoryParts:
    """Splits the memory of a measured step: each part's own highest level, so that they need not sum to the peak."""
    found = _Parts()
    library.check(library.timeline_parts(step._handle, ctypes.byref(found), ctypes.sizeof(found)))
    return MemoryParts(found.parameters, found.gradients, found.optimizer_states, found.activations, found.temporaries)


def measure_activations(loss: Loss, small: int = 2, large: int = 4) -> ActivationCost:
    """Fits the line through two forwards of small batches.

    Args:
        loss: runs forward for a batch of this size, in the model's training mode, and returns the result to call
            backward on. small, large: the batches, 1 <= small < large.

    Raises:
        ValueError: on other batches; also what `loss` raises.
    """
    if not 1 <= small < large:
        raise ValueError(
            f"refrain.measure_activations: found batches {small} and {large}, expected two of at least 1, "
            "the second larger"
        )
    low, high = (float(saved_tensors(loss, batch).kept_bytes) for batch in (small, large))
    per_example = (high - low) / (large - small)
    return ActivationCost(per_example, low - per_example * small)


def _twin_of(value: Any) -> Any:
    """On meta, unless it is no tensor or a count of steps."""
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_like(value, device="meta") if value.dim() > 0 else value.clone()


def _expected_state(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the state after a step: of a twin's on meta tensors, which have sizes and no bytes."""
    groups: list[dict[str, Any]] = []
    state: dict[torch.Tensor, dict[str, Any]] = collections.defaultdict(dict)
    for group in optimizer.param_groups:
        twins = []
        for parameter in group["params"]:
            twin = torch.empty_like(parameter, device="meta").requires_grad_(parameter.requires_grad)
            if parameter.requires_grad:
                twin.grad = torch.empty_like(twin)
            if parameter in optimizer.state:  # some make it when they are made
                state[twin] = {name: _twin_of(value) for name, value in optimizer.state[parameter].items()}
            twins.append(twin)
        more = {name: value for name, value in group.items() if name not in ("params", "param_names")}
        # fused kernels are of a device; the state is the same
        groups.append({**more, "params": twins, **({"fused": None, "foreach": False} if more.get("fused") else {})})
    twin_optimizer = type(optimizer).__new__(type(optimizer))
    try:
        twin_optimizer.__setstate__({"defaults": optimizer.defaults, "state": state, "param_groups": groups})
        twin_optimizer.step()
    except Exception as error:
        name = type(optimizer).__name__
        raise ValueError(
            f"refrain.estimate_fixed: the state of {name} is not known without a step ({type(error).__name__}: "
            f"{error}); "
            "expected an optimizer that runs on meta tensors, as those of torch.optim. Measure a step with a "
            "MemoryTimeline instead"
        ) from error
    states = [value for state in twin_optimizer.state.values() if isinstance(state, dict) for value in state.values()]
    # as in C++: not the count of steps, a number for each parameter
    return sum(value.nbytes for value in states if isinstance(value, torch.Tensor) and value.device.type == "meta")


def estimate_fixed(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> MemoryParts:
    """Estimates the fixed cost of a step without running one: parameters, gradients of those that require one,
    and the state of `optimizer` once it has stepped.

    Raises:
        ValueError: for an optimizer that does not run on meta tensors.
    """
    parameters = list(model.parameters())
    gradients = sum(p.nbytes for p in parameters if p.requires_grad)
    return MemoryParts(sum(p.nbytes for p in parameters), gradients, _expected_state(optimizer))


@dataclass(frozen=True)
class BreakdownRow:
    """One batch. Bytes."""

    batch: int
    estimated: MemoryParts
    measured: MemoryParts
    peak: int  #: of the measured step, absolute
    resident_peak: int  #: of the process, less what it had before any tensor


@dataclass(frozen=True)
class Breakdown(Document):
    """The result of `breakdown`. `print` shows it as tables, a notebook as a picture; `write_html` writes the page
    that the tool draws.
    """

    rows: list[BreakdownRow]
    activations: ActivationCost
    crossover_batch: int | None  #: from it on activations exceed the fixed cost
    parameter_count: int
    model: str
    optimizer: str
    strategy: str

    def document(self) -> dict[str, Any]:
        def parts(of: MemoryParts, *left_out: str) -> dict[str, int]:
            return {name: value for name, value in asdict(of).items() if name not in left_out}

        rows = [
            {
                "batch": row.batch,
                "estimated": parts(row.estimated, "temporaries"),
                "measured": parts(row.measured),
                "peak_bytes": row.peak,
                "resident_peak_bytes": row.resident_peak,
            }
            for row in self.rows
        ]
        return {
            "kind": "breakdown",
            "version": 1,
            "model": self.model,
            "config": {},
            "machine": machine(),
            "strategy": self.strategy,
            "optimizer": self.optimizer,
            "parameter_count": self.parameter_count,
            "rows": rows,
            "crossover_batch": self.crossover_batch,
        }

    def __str__(self) -> str:
        def mib(bytes: int) -> str:
            return f"{bytes / 2**20:.2f}"

        first = self.rows[0]
        lines = [
            f"{self.model}, {self.parameter_count:,} parameters, {self.optimizer}",
            "",
            f"{'MiB':<16}  {'estimated':>9}  {'measured':>8}",
        ]
        for name in ("parameters", "gradients", "optimizer_states", "fixed"):
            title = "fixed cost" if name == "fixed" else name.replace("_", " ")
            lines.append(
                f"{title:<16}  {mib(getattr(first.estimated, name)):>9}  {mib(getattr(first.measured, name)):>8}"
            )
        lines += [
            "",
            f"{'batch':>6}  {'activations':>11}  {'measured':>8}  {'of total':>8}  {'temporaries':>11}  {'peak':>8}",
        ]
        for row in self.rows:
            total = row.estimated.activations + row.estimated.fixed
            share = 100 * row.estimated.activations / total if total else 0.0
            lines.append(
                f"{row.batch:>6}  {mib(row.estimated.activations):>11}  {mib(row.measured.activations):>8}  "
                f"{share:>6.1f} %  {mib(row.measured.temporaries):>11}  {mib(row.peak):>8}"
            )
        where = "at no batch" if self.crossover_batch is None else f"from batch {self.crossover_batch} on"
        return "\n".join([*lines, f"activations exceed the fixed cost {where}"]) + "\n"


def _measured(model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, batch: int) -> MemoryTimelineReport:
    """Of the second step: the optimizer's state is there."""

    def step() -> None:
        loss(batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    optimizer.zero_grad()
    step()
    optimizer.zero_grad()
    library.check(library.release_free_memory())  # of a larger batch before
    with MemoryTimeline(model, optimizer) as timeline:
        step()
    optimizer.zero_grad()
    return timeline.report


def breakdown(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    batches: Sequence[int] = (2, 4, 8),
    *,
    name: str = "",
    strategy: str = "none",
) -> Breakdown:
    """Measures where the memory of a step goes, for some batches, beside what is estimated from the model, the
    optimizer and two forwards.

        print(refrain.breakdown(model, optimizer, lambda n: model(x[:n]).pow(2).mean(), batches=(4, 8, 16)))

    Args:
        loss: runs forward for a batch of this size and returns the loss.
        batches: at least one, each at least 1.
        name, strategy: for the picture, as of `MemoryTimeline`.

    Raises:
        ValueError: without batches, and as `estimate_fixed`; also what `loss` raises.

    Cost: two forwards, and two real steps for each batch: parameters change, gradients are dropped. What was made
    before `install_memory_tracking()` is not measured: call it before the model is built.
    """
    if not batches or min(batches) < 1:
        raise ValueError(f"refrain.breakdown: batches are {list(batches)}, expected at least one, each at least 1")
    library.check(library.install_memory_tracking())
    fixed = estimate_fixed(model, optimizer)
    activations = measure_activations(loss)
    rows = []
    for batch in batches:
        report = _measured(model, optimizer, loss, batch)
        estimated = MemoryParts(fixed.parameters, fixed.gradients, fixed.optimizer_states, activations.at(batch))
        rows.append(
            BreakdownRow(
                batch,
                estimated,
                measured_parts(report),
                report.peak_bytes,
                report.resident_peak - report.resident_before,
            )
        )
    return Breakdown(
        rows,
        activations,
        activations.first_batch_exceeding(fixed.fixed),
        sum(p.numel() for p in model.parameters()),
        name or type(model).__name__,
        type(optimizer).__name__,
        strategy,
    )
