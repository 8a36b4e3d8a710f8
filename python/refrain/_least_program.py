"""`python -m refrain run --least-limit`: the lowest limit under which the beginning of an unmodified program runs.

A program cannot be asked to repeat a step, so it is begun again: each trial is a process that runs it under a cap until
some backwards are done. What a trial found comes back in a file.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import torch

from ._errors import out_of_memory_numbers
from ._memory import format_bytes, memory_stats
from ._programs import EachBackward, ProgramFailed, ended_after, found_in_process, run_program

MARGIN = 1.1  #: a limit so far above the lowest is what a training is advised to take
MULTIPLES = (1.25, 1.5)
TRIALS_IN_A_ROW = 3


@dataclass(frozen=True)
class Trial:
    """The beginning of a program under a limit. Bytes are absolute."""

    limit: int  #: 0: none
    holds: bool
    peak: int
    ms: float  #: median time from the end of a backward to that of the next
    backwards: int
    min_limit: int = 0  #: where it does not hold, as of `OutOfMemoryNumbers`


def _refusal(error: BaseException | None) -> BaseException | None:
    """The out-of-memory error among an error and its causes."""
    while error is not None and not isinstance(error, torch.OutOfMemoryError):
        error = error.__cause__ or error.__context__
    return error


def run_trial(given: Any, scope: Any) -> None:
    """In the process of a trial: runs the program and writes what it found to `given.trial`."""
    ended: list[float] = []
    watch = EachBackward(lambda _count: ended.append(time.perf_counter()))
    found: dict[str, Any] = {"holds": True, "min_limit": 0}
    try:
        with ended_after(given.steps), scope:
            run_program(given)
    except BaseException as error:
        refusal = _refusal(error)
        if refusal is None:
            raise
        numbers = out_of_memory_numbers(refusal)
        found.update(holds=False, min_limit=numbers.min_limit if numbers else 0)
    finally:
        watch.close()
    gaps = [1e3 * (after - before) for before, after in zip(ended, ended[1:])]
    found.update(peak=memory_stats().peak, ms=statistics.median(gaps) if gaps else 0.0, backwards=len(ended))
    Path(given.trial).write_text(json.dumps(found))


def _try(given: Any, limit: int) -> Trial:
    command = ["-m", "refrain", "run", "--steps", str(given.steps)]
    command += ["--memory-limit", f"{limit} B"] if limit else []
    command += ["--patch-torch"] if given.patch_torch else []
    return Trial(limit=limit, **found_in_process(given, *command))


def _in_a_row(attempt: Callable[[int], Trial], limit: int, times: int) -> Trial:
    """Trials of a limit up to the first that is refused. Returns the last."""
    trial = attempt(limit)
    while trial.holds and times > 1:
        trial, times = attempt(limit), times - 1
    return trial


def search(attempt: Callable[[int], Trial], peak: int, tolerance: float) -> tuple[list[Trial], int]:
    """A bisection, then upwards until a limit and the one `MARGIN` above it hold `TRIALS_IN_A_ROW` times each: what is
    evicted depends on measured times, so near the lowest limit one trial says little about the next, nor about one a
    little above.

    Returns:
        A trial of the limit that held and, if it is below `peak`, one of the limit `MARGIN` above it; and the highest
        limit below the first that was refused.
    """
    limit, lower, refused = peak, 0, 0
    held = attempt(limit)
    while not held.holds:  # copies of what is overwritten need some more than without a limit
        lower = refused = limit
        limit = max(held.min_limit, limit + max(limit // 16, 1))
        held = attempt(limit)
    step = max(1, int(tolerance * peak))
    while held.limit - lower > step:
        trial = attempt(lower + (held.limit - lower) // 2)
        if trial.holds:
            held = trial
        else:
            refused = trial.limit
            lower = min(max(trial.min_limit - 1, trial.limit), held.limit - 1)
    limit, times = held.limit, TRIALS_IN_A_ROW - 1
    while True:
        held = _in_a_row(attempt, limit, times)
        if held.holds:
            margin = int(MARGIN * limit)
            if margin >= peak:
                return [held], refused
            above = _in_a_row(attempt, margin, TRIALS_IN_A_ROW)
            if above.holds:
                return [held, above], refused
            held = above
        refused, limit, times = held.limit, held.limit + step, TRIALS_IN_A_ROW


def report(baseline: Trial, refused: int, costs: list[Trial], runs: int) -> str:
    """A table of a few lines. @param costs  the first is of the lowest limit."""
    lowest = costs[0].limit
    lines = [
        f"lowest limit {format_bytes(lowest)} ({lowest} bytes), {TRIALS_IN_A_ROW} times in a row; "
        f"{format_bytes(refused)} was refused, without a limit the peak is {format_bytes(baseline.peak)}",
        f"{runs} runs of the program, each until {baseline.backwards} backwards were done",
        "",
        f"{'limit':>12}  {'peak':>12}  {'ms a step':>9}  {'ratio':>5}",
        f"{'none':>12}  {format_bytes(baseline.peak):>12}  {baseline.ms:>9.1f}  {1:>5.2f}",
    ]
    for cost in costs:
        ratio = cost.ms / baseline.ms if baseline.ms else 1.0
        lines.append(f"{format_bytes(cost.limit):>12}  {format_bytes(cost.peak):>12}  {cost.ms:>9.1f}  {ratio:>5.2f}")
    return "\n".join(lines) + "\n"


def least_limit_of_program(given: Any) -> int:
    """Searches, and prints a table. @return the exit code: the program's where it fails without a limit, else 0."""
    runs = 0

    def attempt(limit: int) -> Trial:
        nonlocal runs
        runs += 1
        trial = _try(given, limit)
        if not given.quiet:
            what = f"runs, {trial.ms:.0f} ms a step" if trial.holds else "refused"
            print(f"refrain: {format_bytes(limit) if limit else 'no limit'}: {what}", file=sys.stderr)
        return trial

    try:
        baseline = attempt(0)
        if baseline.peak == 0:
            raise ProgramFailed(2, "refrain: the program allocated no tensor\n")
        costs, refused = search(attempt, baseline.peak, 0.01)
        limits = [int(costs[0].limit * multiple) for multiple in MULTIPLES]
        costs += [trial for trial in (attempt(limit) for limit in limits if limit < baseline.peak) if trial.holds]
    except ProgramFailed as error:
        print(error, file=sys.stderr)
        return error.code
    print(report(baseline, refused, costs, runs), end="")
    return 0
