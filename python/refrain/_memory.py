"""Limits, caps and budgets on memory, and what is measured of it. Bytes everywhere; of tensors unless it says of the
process.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any, Iterable

import torch

from . import _torch_patches
from ._budget import Budget, Bytes, budget_of, limit_of
from ._errors import keep_numbers
from ._handles import Scope, read, struct_of
from ._library import impls, library
from ._plans import StepPlan

__all__ = [
    "CapThreadScope", "MemoryBudget", "MemoryBudgetStats", "MemoryCap", "MemoryCapStats", "MemoryLimit", "MemoryScope",
    "MemoryStats", "OpaqueScope", "PinScope", "TapeStats", "format_bytes", "install_memory_tracking", "memory_stats",
    "pin", "register_side_effect_op", "release_free_memory", "reset_peak_memory", "reset_tape_counters",
    "set_check_inputs", "tape_stats",
]  # fmt: skip


@dataclass(frozen=True)
class MemoryStats:
    """Exact bytes of torch's CPU allocator, and what the system counts for the process."""

    current: int  #: allocated and not freed
    peak: int  #: largest `current` since the start or `reset_peak_memory`
    allocations: int
    resident: int  #: of the process, everything included
    resident_peak: int
    resident_before: int  #: `resident` when tracking was installed
    heap_held: int
    heap_free: int


@dataclass(frozen=True)
class MemoryCapStats:
    """What all caps of the process did since the first of those open was opened."""

    limit: int  #: in force, of tensors' bytes
    process_limit: int  #: in force, of the process
    evictions: int
    evicted_bytes: int
    recomputes: int  #: operators
    recompute_ms: float
    policy_ms: float  #: spent choosing what to evict
    unrecorded_steps: int  #: that ran with room to spare, see `always_record` of `MemoryCap`


@dataclass(frozen=True)
class MemoryBudgetStats:
    """What a budget did since it was opened."""

    traced_steps: int
    planned_steps: int  #: ran by a plan from beginning to end
    mismatched_steps: int  #: diverged from their plan; results are right all the same
    planning_ms: float
    replans: int
    unrecorded_steps: int  #: ran without a plan, as all kinds of steps fit so
    first_mismatch: str  #: where the first of them diverged


@dataclass(frozen=True)
class TapeStats:
    """What the tape holds now, and counters since the start or `reset_tape_counters`."""

    live_ops: int
    live_values: int
    live_slots: int  #: tensors that autograd saved inside of regions and has not released
    live_regions: int
    recorded_ops: int
    replayed_ops: int
    replay_passes: int
    reruns: int
    leaf_copies: int
    leaf_copy_bytes: int
    recorded_ms: float
    replayed_forward_ms: float
    replay_ms: float


_MEMORY, _CAP, _TAPE = struct_of(MemoryStats), struct_of(MemoryCapStats), struct_of(TapeStats)
_BUDGET = struct_of(MemoryBudgetStats, {"first_mismatch"})


def install_memory_tracking() -> None:
    """Counts the bytes of torch's CPU allocator from now on. Scopes, limits, caps and budgets do so themselves; call
    it early, as older tensors are not counted.
    """
    library.check(library.install_memory_tracking())


def memory_stats() -> MemoryStats:
    """Reads the byte counts; all are 0 before `install_memory_tracking`. Cost: 20 us."""
    return read(MemoryStats, _MEMORY, library.memory_stats)


def reset_peak_memory() -> None:
    """Begins the peaks anew."""
    library.check(library.reset_peak_memory())


def release_free_memory() -> None:
    """Gives the system back what heaps keep for later."""
    library.check(library.release_free_memory())


def tape_stats() -> TapeStats:
    """Reads the tape's counters."""
    return read(TapeStats, _TAPE, library.tape_stats)


def reset_tape_counters() -> None:
    """Sets the counters of `tape_stats` (not the live numbers) to zero."""
    library.check(library.reset_tape_counters())


def set_check_inputs(value: bool) -> bool:
    """Hashes what recorded operators read from outside and compares it before it is read again. Returns the old
    setting.
    """
    return bool(library.set_check_inputs(int(value)))


def register_side_effect_op(op: str) -> None:
    """Declares that an operator, "namespace::name", has effects outside of its tensors: it is never replayed, and its
    outputs are kept.
    """
    library.check(library.register_side_effect_op(op.encode()))


def format_bytes(size: int) -> str:
    """Writes bytes for people: "2.0 GiB"."""
    return library.text(library.format_bytes(size))


class MemoryScope:
    """A `with` block whose bytes are measured, of all threads, over the level at its beginning. What it measured stays
    readable after it.
    """

    def __init__(self) -> None:
        self._handle = 0
        self._last = (0, 0, 0)

    def __enter__(self) -> MemoryScope:
        self._handle = library.made(library.memory_scope_open())
        return self

    def __exit__(self, *exception: Any) -> None:
        self._last = self._read()
        handle, self._handle = self._handle, 0
        library.memory_scope_close(handle)

    def _read(self) -> tuple[int, int, int]:
        if not self._handle:
            return self._last
        numbers = tuple(ctypes.c_int64() for _ in range(3))
        library.check(library.memory_scope_read(self._handle, *map(ctypes.byref, numbers)))
        return numbers[0].value, numbers[1].value, numbers[2].value

    @property
    def current(self) -> int:
        """Bytes over the level at the beginning; negative if more was freed than allocated."""
        return self._read()[0]

    @property
    def peak(self) -> int:
        """Highest level so far over the level at the beginning."""
        return self._read()[1]

    @property
    def allocations(self) -> int:
        """Allocations since the beginning."""
        return self._read()[2]


class MemoryLimit(Scope):
    """A `with` block in which allocations above a limit are refused with `torch.OutOfMemoryError`, in the whole
    process. The error has its numbers as attributes, see `OutOfMemoryNumbers`.

    Args:
        limit: bytes, absolute as `memory_stats().current`: "2GiB" or an int above 4096; or `Budget.process`,
            `Budget.available`.

    Raises:
        ValueError: for anything else.
    """

    _close = "memory_limit_close"

    def __init__(self, limit: Bytes | Budget) -> None:
        self._budget = limit_of(limit, "MemoryLimit")

    def _open(self) -> int | None:
        handle: int | None = library.memory_limit_open(self._budget._pointer)
        return handle


class _CapOptions(ctypes.Structure):
    _fields_ = [
        ("heuristic", ctypes.c_int32),
        ("always_record", ctypes.c_int32),
        ("min_bytes", ctypes.c_int64),
        ("max_overhead", ctypes.c_double),
    ]


_HEURISTICS = ("h_dtr", "lru", "largest", "msps")


def cap_options(
    heuristic: str, min_bytes: int, max_overhead: float, always_record: bool = False
) -> _CapOptions:
    """The options of a cap as the C API takes them."""
    if heuristic not in _HEURISTICS:
        raise ValueError(f"refrain.MemoryCap: heuristic is {heuristic!r}, expected one of {', '.join(_HEURISTICS)}")
    return _CapOptions(_HEURISTICS.index(heuristic), always_record, min_bytes, max_overhead)


class MemoryCap:
    """A `with` block that keeps the bytes of CPU tensors at or below a limit: tensors that can be recomputed are
    evicted, and recomputed when they are read.

        with refrain.MemoryCap("2GiB"):
            train(...)          # forward, backward, optimizer step, unchanged

    Results are those without it, to the bit. Parameters, inputs and gradients of parameters are never evicted. While
    one is open, what reads a tensor's bytes by pointer (`numpy`, `tolist`, `data_ptr`, `torch.save`, `copy.deepcopy`,
    ...) makes them resident first.

    Args:
        limit: bytes, absolute as `memory_stats().current`: "2GiB" or an int above 4096; or `Budget.process`,
            `Budget.available`.
        heuristic: what is evicted first: "h_dtr" (least time per byte and age), or for comparison "lru", "largest",
            "msps".
        max_overhead: bounds the time that a step may spend recomputing, as a fraction of its operators' time; beyond
            it, `torch.OutOfMemoryError`.
        min_bytes: values below it stay.
        always_record: whether to record also where nothing will be evicted. Else, after three steps or more that
            evicted nothing, and left a third of the limit and three quarters of what they rise free, steps run without
            being recorded, at the cost of steps without a cap, until one rises a quarter above all of them. From there on it
            is recorded; what it made before cannot be evicted.

    Raises:
        ValueError: for a limit that is no number of bytes, and options out of range.
        torch.OutOfMemoryError: inside, by an operator for which nothing more can be evicted; it says the smallest
            limit that would have done.

    Cost: 1 to 4 us an operator, 0.1 us in steps that are not recorded. Threads: the limit holds for all; only
    operators of the thread that opened it, and of threads in a `CapThreadScope`, are recorded.
    """

    def __init__(
        self,
        limit: Bytes | Budget,
        *,
        heuristic: str = "h_dtr",
        max_overhead: float = math.inf,
        min_bytes: int = 512,
        always_record: bool = False,
    ) -> None:
        self._budget = limit_of(limit, "MemoryCap")
        self._options = cap_options(heuristic, min_bytes, max_overhead, always_record)
        self._handle = 0
        self._last: MemoryCapStats | None = None

    def __enter__(self) -> MemoryCap:
        if self._handle:
            raise RuntimeError("refrain.MemoryCap: it is open already; make one for each `with`")
        self._handle = library.made(library.memory_cap_open(self._budget._pointer, ctypes.byref(self._options)))
        _torch_patches.cap_opened()
        return self

    def __exit__(self, *exception: Any) -> None:
        keep_numbers(exception)
        self._last = self.stats()
        handle, self._handle = self._handle, 0
        library.memory_cap_close(handle)  # recomputes what is evicted
        _torch_patches.cap_closed()

    def stats(self) -> MemoryCapStats:
        """What caps did so far; after the `with`, what they had done at its end."""
        if self._handle:
            return read(MemoryCapStats, _CAP, library.memory_cap_stats, self._handle)
        if self._last is None:
            raise RuntimeError("refrain.MemoryCap: not open yet; use it in a `with`")
        return self._last

    def pin(self, tensor: torch.Tensor) -> None:
        """Keeps the bytes of `tensor` resident and in place while its storage lives."""
        if not self._handle:
            raise RuntimeError("refrain.MemoryCap: not open; call pin inside of its `with`")
        library.check(library.memory_cap_pin(self._handle, tensor._cdata))


class MemoryBudget:
    """A `with` block that keeps the steps of this thread within a budget by a plan: the least time added for the peak.

        with refrain.MemoryBudget(0.5):       # halfway from the lowest achievable peak to the baseline's
            train(...)                        # a step ends with its outermost backward
        with refrain.MemoryBudget("400MiB"): ...

    The first step of each kind (operators, shapes) is traced and planned at the end of its backward; the next ones run
    by that plan. A step that diverges from it still has the right results. With bytes, a `MemoryCap` of the same size
    holds in all steps.

    Args:
        budget: a float from 0.0 to 1.0 (a fraction), bytes as "400MiB" or an int above 4096 (absolute), a `Budget`, or
            a `StepPlan`.

    Raises:
        ValueError: for `MemoryBudget(1)`, which could be either; for numbers out of range; if another budget or
            `profile` is active.
        torch.OutOfMemoryError: inside, as under a `MemoryCap`.

    Cost: as a cap's. Threads: the one that opens it; one at a time in the process.
    """

    def __init__(self, budget: float | Bytes | Budget | StepPlan) -> None:
        self._budget = budget if isinstance(budget, StepPlan) else budget_of(budget)
        self._handle = 0
        self._last: tuple[MemoryBudgetStats, str] | None = None

    def __enter__(self) -> MemoryBudget:
        if self._handle:
            raise RuntimeError("refrain.MemoryBudget: it is open already; make one for each `with`")
        if isinstance(self._budget, StepPlan):
            handle = library.memory_budget_open_plan(self._budget._handle)
        else:
            handle = library.memory_budget_open(self._budget._pointer)
        self._handle = library.made(handle)
        _torch_patches.cap_opened()
        return self

    def __exit__(self, *exception: Any) -> None:
        keep_numbers(exception)
        self._last = self.stats(), self.report()
        handle, self._handle = self._handle, 0
        library.memory_budget_close(handle)
        _torch_patches.cap_closed()

    def stats(self) -> MemoryBudgetStats:
        """What it did so far; after the `with`, what it did in all."""
        if self._handle:
            return read(MemoryBudgetStats, _BUDGET, library.memory_budget_stats, self._handle, text="first_mismatch")
        return self._closed()[0]

    def report(self) -> str:
        """Describes the plan of the kind of step that ran last; empty before the first."""
        if self._handle:
            return library.text(library.memory_budget_report(self._handle))
        return self._closed()[1]

    def _closed(self) -> tuple[MemoryBudgetStats, str]:
        if self._last is None:
            raise RuntimeError("refrain.MemoryBudget: not open yet; use it in a `with`")
        return self._last


class PinScope(Scope):
    """A `with` block in which the bytes of tensors stay resident and in place, so that raw pointers to them stay
    valid. Without a cap it does nothing.

    Raises:
        What an operator would that reads the tensors.
    """

    _close = "pin_close"

    def __init__(self, *tensors: torch.Tensor | Iterable[torch.Tensor]) -> None:
        self._tensors: list[torch.Tensor] = []
        for given in tensors:
            self._tensors.extend([given] if isinstance(given, torch.Tensor) else given)

    def _open(self) -> int | None:
        handle: int | None = library.pin_open(impls(self._tensors), len(self._tensors))
        return handle


def pin(*tensors: torch.Tensor | Iterable[torch.Tensor]) -> PinScope:
    """`with refrain.pin(x, model.parameters()): ...`: see `PinScope`."""
    return PinScope(*tensors)


class OpaqueScope(Scope):
    """A `with` block for code that reads and writes tensors through raw pointers: kernels of Triton or Numba,
    libraries called by ctypes.

        with refrain.OpaqueScope(reads=[x, weight], writes=[state]):
            y = kernel(x, weight, state)

    Inside of a region, under a cap or in a budget: `reads` and `writes` are resident and stay in place, what `writes`
    held before is kept where backward needs it, and operators called inside are not recorded. What is made inside is
    kept for backward and never recomputed. Graphs that torch.compile made do this themselves. A tensor that is
    overwritten and not among `writes` may give wrong gradients.

    Raises:
        What an operator would that reads the tensors.
    """

    _close = "opaque_scope_close"

    def __init__(self, reads: Iterable[torch.Tensor] = (), writes: Iterable[torch.Tensor] = ()) -> None:
        self._reads, self._writes = list(reads), list(writes)

    def _open(self) -> int | None:
        return _torch_patches.opaque_open(self._reads, self._writes)


class CapThreadScope(Scope):
    """A `with` block for worker threads: their operators run under the caps that are open, as those of the thread that
    opened these.
    """

    _close = "cap_thread_close"

    def _open(self) -> int | None:
        handle: int | None = library.cap_thread_open()
        return handle
