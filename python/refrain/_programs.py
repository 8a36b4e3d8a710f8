"""Unmodified programs under limits, budgets and timelines: what `python -m refrain run` opens around one."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, Callable

import torch
from torch.nn.modules import module as modules
from torch.optim import optimizer as optimizers

from . import _torch_patches
from ._budget import Budget
from ._memory import MemoryBudget, MemoryCap, format_bytes, memory_stats
from ._timeline import MemoryTimeline, MemoryTimelineReport

__all__ = [
    "BudgetFromThirdStep", "ProgramFailed", "TimelineOfStep", "check_can_write", "found_in_process", "run_program",
    "scope_of", "summary",
]  # fmt: skip


class EachBackward:
    """Calls `at` with 1, 2, ... at the end of each outermost backward of this thread, until it is closed."""

    def __init__(self, at: Callable[[int], None]) -> None:
        self._at, self._thread, self._count = at, threading.get_ident(), 0
        _torch_patches.after_backward.append(self._ended)

    def _ended(self) -> None:
        if threading.get_ident() == self._thread:
            self._count += 1
            self._at(self._count)

    def close(self) -> None:
        """Calls no more; once more does no harm."""
        if self._ended in _torch_patches.after_backward:
            _torch_patches.after_backward.remove(self._ended)


class Enough(SystemExit):
    """Ends a program of which enough was seen, from inside of its backward."""


@contextlib.contextmanager
def ended_after(backwards: int) -> Any:
    """Ends the program after so many backwards; 0 never does."""

    def at(count: int) -> None:
        if count == backwards:
            raise Enough(0)

    watch = EachBackward(at)
    try:
        yield
    except Enough:
        pass
    finally:
        watch.close()


class BudgetFromThirdStep:
    """A budget that begins at the end of the second backward: the first step builds the model as well, the second one
    the optimizer's state, and a budget takes the first operator that it sees for the beginning of every step.

    In bytes, a cap of the same size holds until then.
    """

    def __init__(self, budget: float | str) -> None:
        self._budget = MemoryBudget(budget)
        self._cap = None if isinstance(budget, float) else MemoryCap(budget)
        self._open = contextlib.ExitStack()
        self._has_begun = False

    def __enter__(self) -> None:
        if self._cap is not None:
            self._open.enter_context(self._cap)
        self._watch = EachBackward(self._at)

    def _at(self, backward: int) -> None:
        if backward == 2:
            self._watch.close()
            self._open.close()  # what was made under the cap is no part of a step
            self._open.enter_context(self._budget)
            self._has_begun = True

    def __exit__(self, *exception: Any) -> None:
        self._watch.close()
        self._open.close()

    def summary(self) -> str:
        """What the budget did."""
        if not self._has_begun:
            return "fewer than two backwards ran, so nothing was planned"
        stats = self._budget.stats()
        line = (
            f"{stats.traced_steps} steps traced, {stats.planned_steps} ran by plan, {stats.mismatched_steps} diverged"
        )
        if stats.unrecorded_steps:
            line += f", {stats.unrecorded_steps} needed none"
        return line + (f" ({stats.first_mismatch})" if stats.first_mismatch else "")


class _Found:
    """The model and the optimizer of a program, as seen from torch's hooks for all of them: the model is the largest
    module that is called outside of all others."""

    def __init__(self) -> None:
        self.model: torch.nn.Module | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self._depth = threading.local()
        self._hooks = [
            modules.register_module_forward_pre_hook(self._enter),
            modules.register_module_forward_hook(self._leave, always_call=True),
            optimizers.register_optimizer_step_pre_hook(self._stepped),
        ]

    def _enter(self, module: torch.nn.Module, _inputs: Any) -> None:
        depth = getattr(self._depth, "value", 0)
        self._depth.value = depth + 1
        if depth == 0 and module is not self.model and _size(module) > _size(self.model):
            self.model = module

    def _leave(self, *_: Any) -> None:
        self._depth.value = getattr(self._depth, "value", 1) - 1

    def _stepped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.optimizer = self.optimizer or optimizer

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


def _size(module: torch.nn.Module | None) -> int:
    return -1 if module is None else sum(p.numel() for p in module.parameters())


class TimelineOfStep:
    """A timeline of one step of a program: from the end of a backward to the end of the next one, update included.

    Earlier steps are recorded too and thrown away: if the program has fewer, the last one is what was seen.
    """

    def __init__(self, path: str, step: int, strategy: str) -> None:
        self._path, self._step, self._strategy = path, step, strategy
        self._timeline: MemoryTimeline | None = None
        self._report: MemoryTimelineReport | None = None
        self._recorded = 0
        self._hooks: list[Any] = []

    def __enter__(self) -> None:
        self._found = _Found()
        self._begin()
        self._watch = EachBackward(self._at)

    def _begin(self) -> None:
        model = self._found.model
        self._timeline = MemoryTimeline(model, self._found.optimizer, strategy=self._strategy).__enter__()
        if model is not None:
            self._hooks.append(model.register_forward_pre_hook(self._called, with_kwargs=True))

    def _called(self, _module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        inputs = [(f"input {i}", value) for i, value in enumerate(args)] + list(kwargs.items())
        for name, value in inputs:
            if isinstance(value, torch.Tensor) and self._timeline is not None and not value.requires_grad:
                self._timeline.annotate("input", value, name)

    def _end(self) -> MemoryTimelineReport | None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        timeline, self._timeline = self._timeline, None
        return timeline.stop() if timeline is not None else None

    def _at(self, backward: int) -> None:
        self._report, self._recorded = self._end(), backward
        if backward == self._step:
            self._close()
        else:
            self._begin()

    def _close(self) -> None:
        self._watch.close()
        self._found.close()

    def __exit__(self, *exception: Any) -> None:
        self._close()
        rest = self._end()
        self._report = self._report or rest
        if self._report is not None:
            self._report.write_html(self._path)

    def summary(self) -> str:
        """Where the timeline is."""
        of = f"step {self._recorded}" if self._recorded else "the whole program, which ran no backward"
        return f"timeline of {of} in {self._path}"


def _budget(text: str) -> float | str:
    """A fraction has a point, as in Python: 1 could be either."""
    if "." in text:
        with contextlib.suppress(ValueError):
            return float(text)
    return text


def scope_of(given: Any) -> Any:
    """What the options ask for, not open yet; a null context without any.

    Raises:
        ValueError: for options that cannot be.
    """
    is_cap = given.memory_limit or given.process_limit or given.available
    if given.max_overhead is not None and not is_cap:
        raise ValueError("refrain: --max-overhead is of a cap, found " + ("--budget" if given.budget else "none"))
    if given.budget is not None:
        return BudgetFromThirdStep(_budget(given.budget))
    more = {} if given.max_overhead is None else {"max_overhead": given.max_overhead}
    if given.memory_limit is not None:
        return MemoryCap(given.memory_limit, **more)
    if given.process_limit is not None:
        return MemoryCap(Budget.process(given.process_limit), **more)
    if given.available is not None:
        return MemoryCap(Budget.available(given.available), **more)
    return contextlib.nullcontext()


def check_can_write(option: str, path: str) -> None:
    """Before a program runs for a long time.

    Raises:
        ValueError: if the file cannot be written.
    """
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise ValueError(f"refrain: {option} {path}: expected a file in a folder that can be written to")


def timeline_of(given: Any) -> Any:
    """The timeline that the options ask for, not open yet; a null context without any.

    Raises:
        ValueError: if its file cannot be written, or the step is below 1.
    """
    if given.timeline is None:
        return contextlib.nullcontext()
    check_can_write("--timeline", given.timeline)
    # a budget traces the third step and plans the fourth
    step = given.timeline_step if given.timeline_step is not None else 5 if given.budget is not None else 3
    if step < 1:
        raise ValueError(f"refrain: --timeline-step is {step}, expected 1 or more")
    options = ("memory_limit", "budget", "process_limit", "available")
    named = [
        f"--{name.replace('_', '-')} {getattr(given, name)}" for name in options if getattr(given, name) is not None
    ]
    return TimelineOfStep(given.timeline, step, " ".join(named) or "none")


def summary(scope: Any) -> str:
    """One line for the end of a program."""
    memory = memory_stats()
    line = f"refrain: peak {format_bytes(memory.peak)} of tensors, {format_bytes(memory.resident_peak)} of the process"
    if isinstance(scope, BudgetFromThirdStep):
        return f"{line}; {scope.summary()}"
    if not isinstance(scope, MemoryCap):
        return line
    stats = scope.stats()
    if stats.limit < 1 << 60:
        line += f"; limit {format_bytes(stats.limit)}"
    if stats.process_limit < 1 << 60:
        line += f"; limit of the process {format_bytes(stats.process_limit)}"
    return (
        f"{line}; {stats.evictions} evictions, {stats.recomputes} operators recomputed in {stats.recompute_ms:.0f} ms"
    )


class ProgramFailed(Exception):
    """A trial of a program failed. `code`: its exit code; the text has the end of what it wrote to stderr."""

    def __init__(self, code: int, errors: str) -> None:
        super().__init__(f"{errors}refrain: the program ended with exit code {code}, expected it to run")
        self.code = code


def found_in_process(given: Any, *command: str) -> dict[str, Any]:
    """Runs the program as `python COMMAND --trial FILE [-m] PROGRAM ...`, its output discarded.

    Returns:
        What the process wrote to that file.

    Raises:
        ProgramFailed: if it wrote nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "trial.json")
        module = ["-m"] if given.module else []
        done = subprocess.run(
            [sys.executable, *command, "--trial", report, *module, given.program, *given.arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        if done.returncode != 0 or not os.path.exists(report):
            raise ProgramFailed(done.returncode or 1, done.stderr[-2000:])
        found: dict[str, Any] = json.loads(Path(report).read_text())
        return found


def run_program(given: Any) -> None:
    """Runs the program of the options in this process, as `python PROGRAM` would."""
    sys.argv = [given.program, *given.arguments]
    sys.path[0] = os.getcwd() if given.module else os.path.dirname(os.path.abspath(given.program))
    if given.module:
        runpy.run_module(given.program, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(given.program, run_name="__main__")
