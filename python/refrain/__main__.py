"""`python -m refrain run --memory-limit 2GiB train.py ...`: runs an unmodified program within a limit."""

from __future__ import annotations

import argparse
import contextlib
import os
import runpy
import sys
import threading
from typing import Any, Sequence

EXAMPLES = """examples:
  python -m refrain run --memory-limit 2GiB train.py --epochs 3
  python -m refrain run --budget 0.5 -m package.train
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m refrain", description="Trains torch models in less memory.", epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run an unmodified program within a limit", epilog=EXAMPLES,
                              formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    which = run.add_mutually_exclusive_group(required=True)
    which.add_argument("--memory-limit", metavar="BYTES", help="cap on the bytes of tensors: 2GiB")
    which.add_argument("--budget", metavar="BUDGET", help="planned budget: a fraction from 0.0 to 1.0, or bytes: 0.5, 400MiB")
    which.add_argument("--process-limit", metavar="BYTES", help="cap on the resident bytes of the process: 4GiB")
    which.add_argument("--available", metavar="PART", type=float, help="cap at this part of the memory that is free, above 0, at most 1")
    run.add_argument("--max-overhead", metavar="FACTOR", type=float, help="most time that a step may recompute, as a fraction of its own; only with a cap")
    run.add_argument("--patch-torch", action="store_true", help="let torch.utils.checkpoint replay operators")
    run.add_argument("--quiet", action="store_true", help="no line at the end")
    run.add_argument("-m", dest="module", action="store_true", help="PROGRAM is the name of a module")
    run.add_argument("program", metavar="PROGRAM", help="a Python file")
    run.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of the program")
    return parser


class _BudgetFromThirdStep:
    """A budget that begins at the end of the second backward: the first step builds the model as well, the second one the optimizer's state, and a budget
    takes the first operator that it sees for the beginning of every step.

    In bytes, a cap of the same size holds until then.
    """

    def __init__(self, budget: Any) -> None:
        import refrain

        self._budget = refrain.MemoryBudget(budget)
        self._cap = None if isinstance(budget, float) else refrain.MemoryCap(budget)
        self._thread = threading.get_ident()
        self._backwards = 0
        self._open = contextlib.ExitStack()

    def __enter__(self) -> None:
        if self._cap is not None:
            self._open.enter_context(self._cap)
        after_backward().append(self._begin)

    def _begin(self) -> None:
        self._backwards += threading.get_ident() == self._thread
        if self._backwards == 2:
            after_backward().remove(self._begin)
            self._open.close()  # what was made under the cap is no part of a step
            self._open.enter_context(self._budget)

    def __exit__(self, *exception: Any) -> None:
        if self._begin in after_backward():
            after_backward().remove(self._begin)
        self._open.close()

    def summary(self) -> str:
        if self._begin_never_came():
            return "fewer than two backwards ran, so nothing was planned"
        stats = self._budget.stats()
        line = f"{stats.traced_steps} steps traced, {stats.planned_steps} ran by plan, {stats.mismatched_steps} diverged"
        return line + (f" ({stats.first_mismatch})" if stats.first_mismatch else "")

    def _begin_never_came(self) -> bool:
        return self._budget._last is None


def after_backward() -> list[Any]:
    from . import _torch_patches

    return _torch_patches.after_backward


def _budget(text: str) -> float | str:
    """A fraction has a point, as in Python: 1 could be either."""
    if "." in text:
        with contextlib.suppress(ValueError):
            return float(text)
    return text


def _scope(given: argparse.Namespace) -> Any:
    import refrain

    if given.budget is not None:
        if given.max_overhead is not None:
            raise ValueError("refrain: --max-overhead is of a cap, found --budget")
        return _BudgetFromThirdStep(_budget(given.budget))
    more = {} if given.max_overhead is None else {"max_overhead": given.max_overhead}
    if given.memory_limit is not None:
        return refrain.MemoryCap(given.memory_limit, **more)
    if given.process_limit is not None:
        return refrain.MemoryCap(refrain.Budget.process(given.process_limit), **more)
    return refrain.MemoryCap(refrain.Budget.available(given.available), **more)


def _summary(scope: Any) -> str:
    import refrain

    memory = refrain.memory_stats()
    line = f"refrain: peak {refrain.format_bytes(memory.peak)} of tensors, {refrain.format_bytes(memory.resident_peak)} of the process; "
    if isinstance(scope, _BudgetFromThirdStep):
        return line + scope.summary()
    stats = scope.stats()
    if stats.limit < 1 << 60:
        line += f"limit {refrain.format_bytes(stats.limit)}; "
    if stats.process_limit < 1 << 60:
        line += f"limit of the process {refrain.format_bytes(stats.process_limit)}; "
    return line + f"{stats.evictions} evictions, {stats.recomputes} operators recomputed in {stats.recompute_ms:.0f} ms"


def _run(given: argparse.Namespace) -> None:
    import refrain

    refrain.install_memory_tracking()
    scope = _scope(given)
    if given.patch_torch:
        refrain.patch_torch()
    sys.argv = [given.program, *given.arguments]
    sys.path[0] = os.getcwd() if given.module else os.path.dirname(os.path.abspath(given.program))
    try:
        with scope:
            if given.module:
                runpy.run_module(given.program, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(given.program, run_name="__main__")
    finally:
        if not given.quiet:
            print(_summary(scope), file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 2 for arguments that cannot be, else the program's."""
    given = _parser().parse_args(arguments)
    if not given.module and not os.path.isfile(given.program):
        print(f"refrain: found no file {given.program}, expected a Python program", file=sys.stderr)
        return 2
    try:
        _scope(given)
    except (ValueError, ImportError) as error:
        print(f"refrain: {str(error).removeprefix('refrain: ')}", file=sys.stderr)
        return 2
    _run(given)
    return 0


if __name__ == "__main__":
    sys.exit(main())
