"""`python -m refrain pareto --compile`: peak and time of an unmodified program that uses torch.compile, by budget.

A program cannot be asked to compile again, so each budget is a process that begins it. What a process found comes back
in a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Iterator

from .. import _torch_patches
from .._memory import MemoryScope, format_bytes, install_memory_tracking
from .._programs import Enough, ProgramFailed, found_in_process, run_program
from .._report import Document, machine
from .api import compile_budget
from .report import CompileReport

#: Steps before any that counts: the first compiles, the second still allocates what stays (an optimizer's state).
WARM_UP = 2
#: A budget of ours that has not settled after so many steps more never will.
MOST_UNSETTLED = 30


@dataclass(frozen=True)
class Trial:
    """The beginning of a program under a budget."""

    whose: str  #: "refrain" or "torch"
    budget: float
    peak: int  #: highest of the steps that count, over the level at which the first compiled graph of the step begins
    ms: float  #: median, from there to the end of backward
    ms_low: float  #: quartile
    ms_high: float  #: quartile
    steps: int  #: that count
    replans: int = 0
    warning: str = ""  #: why a budget of ours does not hold, or is not known to

    @property
    def name(self) -> str:
        return f"{self.whose} {self.budget:.2f}"


class NotMeasured(Exception):
    """A program ran, and no step of it counts. The text says why."""


# ---- In the process of a trial


class _Watch:
    """Measures steps of compiled graphs until enough of them count."""

    def __init__(self, wanted: int, report: CompileReport | None) -> None:
        self._wanted, self._report = wanted, report
        self._memory: MemoryScope | None = None
        self._begin = 0.0
        self._seen = 0
        self.peaks: list[int] = []
        self.times: list[float] = []

    @property
    def is_settled(self) -> bool:
        report = self._report
        return report is None or report.is_settled or (bool(report.graphs) and all(g.fallback for g in report.graphs))

    def called(self, _compiled: Any) -> None:
        """A compiled graph begins."""
        if self._memory is None:
            self._memory = MemoryScope()
            self._memory.__enter__()
            self._begin = time.perf_counter()

    def ended(self) -> None:
        """A backward ended."""
        memory, self._memory = self._memory, None
        if memory is None:
            return
        taken = time.perf_counter() - self._begin
        memory.__exit__(None, None, None)
        self._seen += 1
        if self._seen > WARM_UP and self.is_settled:
            self.peaks.append(memory.peak)
            self.times.append(1e3 * taken)
        elif self._seen > MOST_UNSETTLED:
            raise Enough(0)
        if len(self.times) >= self._wanted:
            raise Enough(0)

    def found(self) -> dict[str, Any]:
        """As the members of a `Trial`."""
        report, times = self._report, self.times
        low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else (times or [0.0]) * 3
        found: dict[str, Any] = {
            "peak": max(self.peaks, default=0), "ms": middle, "ms_low": low, "ms_high": high, "steps": len(times)
        }  # fmt: skip
        if report is not None:
            fallbacks = [str(graph) for graph in report.graphs if graph.fallback]
            found |= {"replans": report.replans, "warning": report.warning or "; ".join(fallbacks)}
        return {"compiled": self._seen, **found}


@contextlib.contextmanager
def _under(whose: str, budget: float) -> Iterator[CompileReport | None]:
    if whose == "refrain":
        with compile_budget(budget) as report:
            yield report
    else:
        import torch._functorch.config as functorch_config

        with functorch_config.patch(activation_memory_budget=budget):
            yield None


def run_trial(given: Any) -> int:
    """Runs the program and writes what it found to `given.trial`."""
    whose, budget = given.under.split(":")
    install_memory_tracking()
    with _under(whose, float(budget)) as report:
        watch = _Watch(given.steps, report)
        _torch_patches.before_compiled.append(watch.called)
        _torch_patches.after_backward.append(watch.ended)
        try:
            run_program(given)
        except Enough:
            pass
        finally:
            _torch_patches.before_compiled.remove(watch.called)
            _torch_patches.after_backward.remove(watch.ended)
    Path(given.trial).write_text(json.dumps(watch.found()))
    return 0


# ---- In the command


def _try(given: Any, whose: str, budget: float) -> Trial:
    command = ["-W", "ignore", "-m", "refrain", "pareto", "--compile", "--under", f"{whose}:{budget}"]
    found = found_in_process(given, *command, "--steps", str(given.steps))
    compiled = found.pop("compiled")
    if compiled == 0:
        raise NotMeasured(
            "refrain: the program ran no backward of a compiled graph, expected a use of torch.compile in training"
        )
    if found["steps"] == 0:
        raise NotMeasured(
            f"refrain: {whose} {budget}: of {compiled} steps none counts, expected more: {WARM_UP} come before, and "
            f"those that are planned again{'; ' + found['warning'] if found.get('warning') else ''}"
        )
    return Trial(whose, budget, **found)


class Pareto(Document):
    """Peaks and times by budget, beside those of torch's own budgets.

    `plain` is `torch.compile` without a budget: torch's, of 1.0.
    """

    def __init__(self, program: str, trials: list[Trial]) -> None:
        self.program, self.trials = program, trials
        self.plain = next(trial for trial in trials if (trial.whose, trial.budget) == ("torch", 1.0))

    def document(self) -> dict[str, Any]:
        """As docs/design/report.md has `pareto`."""

        def point(trial: Trial) -> dict[str, Any]:
            added = trial.ms - self.plain.ms
            return {**asdict(trial), "peak_bytes": trial.peak, "added_ms": added, "overhead": added / self.plain.ms}

        series = [
            {"name": name, "role": "measured", "points": [point(trial) for trial in self.trials if trial.whose == whose]}
            for whose, name in (("refrain", "refrain.compile_options"), ("torch", "activation_memory_budget"))
        ]
        return {
            "kind": "pareto",
            "version": 1,
            "model": self.program,
            "config": {"steps": self.plain.steps},
            "machine": machine(),
            "plain": {"peak_bytes": self.plain.peak, "step_ms_median": self.plain.ms},
            "series": series,
        }

    def __str__(self) -> str:
        header = ("budget", "peak", "of plain", "ms a step", "quartiles", "of plain", "further plans")
        rows = [header]
        for trial in self.trials:
            rows.append(
                (
                    trial.name,
                    format_bytes(trial.peak),
                    f"{trial.peak / self.plain.peak:.2f}",
                    f"{trial.ms:.1f}",
                    f"{trial.ms_low:.1f} to {trial.ms_high:.1f}",
                    f"{trial.ms / self.plain.ms:.2f}",
                    str(trial.replans) if trial.whose == "refrain" else "",
                )
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
            for row in rows
        ]
        lines += [f"{trial.name}: {trial.warning}" for trial in self.trials if trial.warning]
        return "\n".join(line.rstrip() for line in lines) + "\n"


def _budgets(points: int) -> list[float]:
    return [1.0 - place / (points - 1) for place in range(points)]


def pareto_of_program(given: Any) -> int:
    """Runs the program under each budget, prints a table, and writes what was asked for.

    Returns:
        The exit code: the program's where it fails, else 0.
    """

    def attempt(whose: str, budget: float) -> Trial:
        trial = _try(given, whose, budget)
        if not given.quiet:
            print(f"refrain: {trial.name}: {format_bytes(trial.peak)}, {trial.ms:.1f} ms a step", file=sys.stderr)
        return trial

    asked = [("torch", budget) for budget in given.torch_budgets]
    asked += [("refrain", budget) for budget in _budgets(given.points)]
    try:
        found = Pareto(os.path.basename(given.program), [attempt(*one) for one in asked])
    except (ProgramFailed, NotMeasured) as error:
        print(error, file=sys.stderr)
        return error.code if isinstance(error, ProgramFailed) else 2
    print(found, end="")
    if given.json:
        found.write_json(given.json)
    if given.html:
        found.write_html(given.html)
    return 0


def budgets_of(text: str) -> list[float]:
    """Of --torch: fractions, of which 1.0 is always the first.

    Raises:
        ValueError: where one is none.
    """
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = [-1.0]
    if any(not 0.0 <= budget <= 1.0 for budget in found):
        raise ValueError(f"refrain: --torch is {text}, expected fractions from 0.0 to 1.0, such as 0.7,0.3")
    return [1.0, *sorted({budget for budget in found if budget != 1.0}, reverse=True)]

