"""Steps that are traced, planned, and searched for their lowest limit and their largest batch."""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import gc
import json
import os
from dataclasses import dataclass, field, replace
from typing import Any, Callable, NoReturn, Sequence

import torch

from . import _torch_patches
from ._budget import Budget, Bytes, budget_of, parse_bytes
from ._errors import CALLBACK_FAILED, OUT_OF_MEMORY, raise_last
from ._handles import Owned, read, struct_of
from ._library import BatchStepFunction, StepFunction, library
from ._modules import ModulePaths
from ._report import as_text

__all__ = [
    "BatchTrial", "LargestBatch", "LeastLimit", "LimitCost", "PlanExplanation", "PlanHolder", "PlanScope", "StepPlan",
    "StepTrace", "largest_batch", "least_limit", "plan_step", "profile",
]  # fmt: skip

Step = Callable[[], Any]


class _Steps:
    """Calls a Python step from C, and keeps what it raised."""

    def __init__(self, step: Callable[..., Any], function: Any = StepFunction) -> None:
        self._step = step
        self.error: BaseException | None = None
        self.thunk = function(self._call)

    def _call(self, _context: Any, *arguments: int) -> int:
        try:
            self._step(*arguments)
        except torch.OutOfMemoryError:
            return OUT_OF_MEMORY
        except BaseException as error:
            self.error = error
            return CALLBACK_FAILED
        return 0

    def made(self, handle: int | None) -> int:
        return handle or self._raise()

    def check(self, code: int) -> None:
        if code != 0:
            self._raise()

    def _raise(self) -> NoReturn:
        if library.last_code() == CALLBACK_FAILED and self.error is not None:
            raise self.error
        raise_last(library)


@dataclass(frozen=True)
class PlanScope:
    """What a plan does with the operators of one module. Places count operators of the step from 0; -1: none."""

    scope: str  #: path of the module, or ""
    what: list[str]  #: recomputed operators, as "3 aten::relu", most first
    runs: int  #: operators recomputed
    ms: float  #: their time
    first_place: int  #: where they are recomputed
    last_place: int
    dropped: int  #: values dropped, counted each time
    freed_at_peak: int  #: bytes that the baseline has at its peak, and the plan has not


@dataclass(frozen=True)
class PlanHolder:
    """A value that is resident at the peak."""

    value: int
    bytes: int
    op: str  #: that made it; of a source, the one that reads it next
    scope: str
    made: int  #: place of the operator that made it; -1: a source
    next_read: int  #: place of the next operator that reads it; -1: none
    temporary: bool  #: dead in the baseline, recomputed for others


@dataclass(frozen=True)
class PlanExplanation:
    """What a plan evicts and recomputes, and what is resident at its peak. `print` shows some dozen lines.

    Bytes are absolute.
    """

    baseline_peak: int
    peak: int
    peak_op: str  #: that runs then, or is the next to run; "" at the end
    peak_scope: str
    peak_in_recompute: bool
    step_ms: float  #: operators, each once
    added_ms: float
    recomputed_operators: int
    dropped_values: int
    scopes: list[PlanScope]  #: by bytes freed, then in the order of the step
    holders: list[PlanHolder]  #: largest first
    text: str = field(default="", repr=False)

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return as_text(self.text)


def _explained(function: Any, handle: int, most_holders: int) -> PlanExplanation:
    text, document = ctypes.c_void_p(), ctypes.c_void_p()
    library.check(function(handle, most_holders, ctypes.byref(text), ctypes.byref(document)))
    found = json.loads(library.text(document.value))
    scopes = [
        PlanScope(
            s["scope"],
            s["what"],
            s["runs"],
            s["ns"] / 1e6,
            s["first_place"],
            s["last_place"],
            s["dropped"],
            s["freed_at_peak_bytes"],
        )
        for s in found["scopes"]
    ]
    holders = [
        PlanHolder(h["value"], h["bytes"], h["op"], h["scope"], h["made"], h["next_read"], h["temporary"])
        for h in found["holders"]
    ]
    return PlanExplanation(
        found["plain_peak_bytes"], found["peak_bytes"], found["peak_op"], found["peak_scope"],
        found["peak_in_recompute"], found["step_ns"] / 1e6, found["added_ns"] / 1e6, found["recomputed_ops"],
        found["dropped_values"], scopes, holders, library.text(text.value),
    )  # fmt: skip


class StepTrace(Owned):
    """One real step: its operators with times, its values with exact bytes and live ranges. Made by `profile` or
    `StepTrace.load`.
    """

    _close = "step_trace_close"

    def __init__(self, handle: int) -> None:
        self._handle = handle

    @staticmethod
    def load(path: str | os.PathLike[str]) -> StepTrace:
        """Reads a trace from a file that `save` wrote.

        Raises:
            ValueError: if the file cannot be read, or (`FormatError`) is no trace.
        """
        return StepTrace(library.made(library.step_trace_load(os.fsencode(path))))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the trace as JSON."""
        library.check(library.step_trace_save(self._handle, os.fsencode(path)))

    def __repr__(self) -> str:
        operators, peak, operators_ms = self._read()
        return f"StepTrace({operators} operators of {operators_ms:.1f} ms, peak {peak} bytes)"

    def explain(self, most_holders: int = 12) -> PlanExplanation:
        """Says what is resident at the step's peak without any plan, and what made it.

        Args:
            most_holders: values to name, the largest first.
        """
        return _explained(library.step_trace_explain, self._handle, most_holders)

    def _read(self) -> tuple[int, int, float]:
        operators, peak, operators_ms = ctypes.c_int64(), ctypes.c_int64(), ctypes.c_double()
        library.check(
            library.step_trace_read(
                self._handle, ctypes.byref(operators), ctypes.byref(peak), ctypes.byref(operators_ms)
            )
        )
        return operators.value, peak.value, operators_ms.value

    @property
    def operators(self) -> int:
        """Number of operators."""
        return self._read()[0]

    @property
    def peak(self) -> int:
        """The baseline's peak, in bytes, absolute."""
        return self._read()[1]

    @property
    def operators_ms(self) -> float:
        """Time of all operators, each once."""
        return self._read()[2]


class StepPlan(Owned):
    """What to evict and what to recompute in a step so that it keeps a budget. Run it with `MemoryBudget(plan)`."""

    _close = "step_plan_close"

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __repr__(self) -> str:
        return f"StepPlan({library.text(library.step_plan_report(self._handle, 0))})"

    @staticmethod
    def load(path: str | os.PathLike[str]) -> StepPlan:
        """Reads a plan from a file that `save` or the tool wrote; raises as `StepTrace.load`."""
        return StepPlan(library.made(library.step_plan_load(os.fsencode(path))))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan as JSON."""
        library.check(library.step_plan_save(self._handle, os.fsencode(path)))

    def report(self) -> str:
        """A few lines: the plan, and each phase of the search."""
        return library.text(library.step_plan_report(self._handle, 1))

    def explain(self, most_holders: int = 12) -> PlanExplanation:
        """Says what the plan evicts and recomputes, module by module, and what is resident at its peak: what the
        tool's `explain PLAN` prints.

        Args:
            most_holders: values at the peak to name, the largest first.

        Cost: a simulation, some milliseconds.
        """
        return _explained(library.step_plan_explain, self._handle, most_holders)

    def __str__(self) -> str:
        return self.report()

    def _repr_html_(self) -> str:
        return as_text(self.report())

    def _read(self) -> tuple[bool, int, float, float]:
        fits, peak, added, bound = ctypes.c_int32(), ctypes.c_int64(), ctypes.c_double(), ctypes.c_double()
        library.check(
            library.step_plan_read(
                self._handle, ctypes.byref(fits), ctypes.byref(peak), ctypes.byref(added), ctypes.byref(bound)
            )
        )
        return bool(fits.value), peak.value, added.value, bound.value

    @property
    def fits(self) -> bool:
        """False: infeasible, and this is the plan with the lowest peak that was found."""
        return self._read()[0]

    @property
    def peak(self) -> int:
        """Bytes, absolute."""
        return self._read()[1]

    @property
    def added_ms(self) -> float:
        """Time of the recomputed operators."""
        return self._read()[2]

    @property
    def lower_bound_ms(self) -> float:
        """No plan for the budget adds less."""
        return self._read()[3]


def profile(step: Step, *, runs: int = 1, model: str = "", modules_of: torch.nn.Module | None = None) -> StepTrace:
    """Runs `step` and traces it to the end of its first backward.

    Args:
        step: a whole step; each run is a real one.
        runs: how often; the trace has the shortest time of each operator.
        model: free text for reports.
        modules_of: operators are named by the paths of its modules, for `explain`.

    Raises:
        ValueError: if `runs` is below 1, or inside of a budget or another profile; also what `step` raises.
    """
    steps = _Steps(step)
    paths = ModulePaths(modules_of) if modules_of is not None else contextlib.nullcontext()
    with paths, _torch_patches.capped():
        return StepTrace(steps.made(library.profile(steps.thunk, None, runs, model.encode())))


def plan_step(trace: StepTrace, budget: float | Bytes | Budget, *, time_limit: float | None = None) -> StepPlan:
    """Plans a traced step for a peak: what to evict and recompute, with the least added time that is found.

    Args:
        budget: as for `MemoryBudget`.
        time_limit: seconds to search; a bound may take as long again. Default: 1.
    """
    given = budget_of(budget)
    return StepPlan(
        library.made(library.plan_step(trace._handle, given._pointer, -1.0 if time_limit is None else time_limit))
    )


class _LeastOptions(ctypes.Structure):
    _fields_ = [
        ("tolerance", ctypes.c_double),
        ("multiples", ctypes.POINTER(ctypes.c_double)),
        ("multiples_count", ctypes.c_size_t),
        ("runs", ctypes.c_int32),
        ("steps", ctypes.c_int32),
        ("cap", ctypes.c_void_p),
    ]


@dataclass(frozen=True)
class LimitCost:
    """What a limit costs a step. If it does not hold, the other numbers are 0."""

    limit: int
    peak: int
    ms: float
    ratio: float  #: to the step without a limit
    recomputes: int
    evictions: int
    holds: bool


@dataclass(frozen=True)
class LeastLimit:
    """The result of `least_limit`. Bytes are absolute, as `memory_stats().current`."""

    limit: int  #: the lowest limit that was seen to hold
    refused: int  #: the highest below it that was refused
    level: int  #: before a step
    peak: int  #: without a limit, under a cap
    baseline_ms: float
    steps: int  #: times that the step was called
    costs: list[LimitCost] = field(default_factory=list)
    text: str = ""

    def report(self) -> str:
        """A table of a few lines."""
        return self.text

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return as_text(self.text)


_LEAST, _COST = struct_of(LeastLimit, {"costs", "text"}), struct_of(LimitCost)


def least_limit(
    step: Step,
    *,
    tolerance: float = 0.01,
    multiples: Sequence[float] = (1.0, 1.1, 1.25, 1.5),
    runs: int = 3,
    steps: int = 2,
) -> LeastLimit:
    """Finds the lowest limit of a `MemoryCap` under which `step` runs, by running it, and what a few limits above cost.

        least = refrain.least_limit(lambda: (optimizer.zero_grad(), loss_of(batch).backward()))
        with refrain.MemoryCap(least.costs[1].limit): ...      # a tenth above the lowest

    Args:
        step: a whole step that can be run again and again, also after a refusal stopped it half-way: it begins by
            dropping gradients, and lets `torch.OutOfMemoryError` through. Nothing is put back: each call is a real
            step.
        tolerance: ends the search; a fraction of what the step needs over the level before it.
        multiples: of the lowest limit, to measure.
        runs: timed steps at each of them.
        steps: how many steps in a row a limit must hold.

    Raises:
        ValueError: if an option is out of range, under a cap or limit, or if `step` caught a `torch.OutOfMemoryError`;
            also what else `step` raises.

    Cost: some 20 to 40 steps.
    """
    numbers = (ctypes.c_double * len(multiples))(*multiples)
    options = _LeastOptions(tolerance, numbers, len(multiples), runs, steps, None)
    calls = _Steps(step)
    with _torch_patches.capped():
        handle = calls.made(library.least_limit(calls.thunk, None, ctypes.byref(options)))
    try:
        costs = [
            read(LimitCost, _COST, library.least_limit_cost, handle, index)
            for index in range(library.least_limit_costs(handle))
        ]
        text = library.text(library.least_limit_report(handle))
        return replace(read(LeastLimit, _LEAST, library.least_limit_read, handle), costs=costs, text=text)
    finally:
        library.least_limit_close(handle)


@dataclass(frozen=True)
class BatchTrial:
    """One step that `largest_batch` ran. Bytes are absolute, as `memory_stats().current`."""

    batch: int
    fits: bool
    peak: int  #: level reached before the refusal, if it does not fit
    resident_peak: int  #: likewise, resident bytes of the process


@dataclass(frozen=True)
class LargestBatch:
    """The result of `largest_batch`. Bytes are absolute, as `memory_stats().current`."""

    batch: int  #: 0: not even `min_batch` fits
    next_batch: int  #: one more, which does not fit; 0 if `batch` is `max_batch`
    peak: int  #: of `batch`
    next_peak: int  #: of `next_batch`, run without the limit
    resident_peak: int  #: of `batch`
    trials: list[BatchTrial] = field(default_factory=list)  #: in the order in which they ran


_LARGEST, _TRIAL = struct_of(LargestBatch, {"trials"}), struct_of(BatchTrial)


class _BatchSteps(_Steps):
    def __init__(self, step: Callable[[int], Any]) -> None:
        super().__init__(step, BatchStepFunction)
        self.is_stopped = False

    def _call(self, context: Any, *arguments: int) -> int:
        if self.is_stopped:
            return CALLBACK_FAILED
        code = super()._call(context, *arguments)
        if isinstance(self.error, MemoryError) or "can't allocate memory" in str(self.error):  # refused by the system
            self.error, code = None, OUT_OF_MEMORY
        if code == OUT_OF_MEMORY:
            gc.collect()  # tracebacks and contexts of functions hold tensors in cycles
        return code


class _BatchSearch(Owned):
    _close = "largest_batch_close"

    def __init__(self, limit: int, min_batch: int, max_batch: int) -> None:
        self._handle = library.made(library.largest_batch_open(limit, min_batch, max_batch))

    def run(self, calls: _BatchSteps) -> LargestBatch:
        calls.check(library.largest_batch_run(self._handle, calls.thunk, None))
        trials = [
            read(BatchTrial, _TRIAL, library.largest_batch_trial, self._handle, index)
            for index in range(library.largest_batch_trials(self._handle))
        ]
        found = read(LargestBatch, _LARGEST, library.largest_batch_read, self._handle)
        return replace(found, trials=trials)


def largest_batch(
    step: Callable[[int], Any], limit: Bytes, *, min_batch: int = 1, max_batch: int = 1 << 20
) -> LargestBatch:
    """Finds the largest batch whose step stays within a limit, by running steps.

        def step(batch):
            optimizer.zero_grad()
            loss_of(examples[:batch]).backward()

        found = refrain.largest_batch(step, "2GiB")
        print(found.batch, refrain.format_bytes(found.peak))

    Doubles the batch until it does not fit, then halves the gap; as soon as two trials fit, tries where the straight
    line of peak over batch meets the limit. Ends when one batch fits and the next does not.

    Args:
        step: a whole step of a batch of so many examples, from forward to the end of backward. It can be run again and
            again, also after a refusal stopped it half-way: it begins by dropping gradients, and lets
            `torch.OutOfMemoryError` through. Nothing is put back: each call is a real step.
        limit: bytes of CPU tensors, absolute as `memory_stats().current`: "2GiB" or an int above 4096.
        min_batch: smallest batch to try, at least 1: some models need two examples.
        max_batch: largest to try.

    Raises:
        ValueError: if an option is out of range; also what else `step` raises.

    Cost: some 10 to 20 steps. Threads: each step runs on a thread of its own, as after an error in backward torch keeps
    the rest of the graph until the thread that called it ends; with the caller's grad mode, autocast and default
    device. Ctrl-C ends the search when the step that runs is done.
    """
    search = _BatchSearch(parse_bytes(limit, "limit"), min_batch, max_batch)
    calls = _BatchSteps(step)
    gc.collect()  # what it frees is no part of a step
    with concurrent.futures.ThreadPoolExecutor(1) as waiting:  # this thread stays in Python, where Ctrl-C is seen
        running = waiting.submit(search.run, calls)
        try:
            return running.result()
        finally:
            calls.is_stopped = True
