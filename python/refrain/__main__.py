"""`python -m refrain run --memory-limit 2GiB train.py ...`: runs an unmodified program within a limit."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, Sequence

EXAMPLES = """examples:
  python -m refrain run --memory-limit 2GiB train.py --epochs 3
  python -m refrain run --budget 0.5 -m package.train
  python -m refrain run --timeline step.html train.py
  python -m refrain run --least-limit train.py
"""


def _parser() -> argparse.ArgumentParser:
    form = {"epilog": EXAMPLES, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(
        prog="python -m refrain",
        description="Trains torch models in less memory.",
        **form,  # type: ignore[arg-type]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run an unmodified program within a limit", **form)  # type: ignore[arg-type]
    add = run.add_argument
    which = run.add_mutually_exclusive_group()
    which.add_argument("--memory-limit", metavar="BYTES", help="cap on the bytes of tensors: 2GiB")
    which.add_argument(
        "--budget", metavar="BUDGET", help="planned budget: a fraction from 0.0 to 1.0, or bytes: 0.5, 400MiB"
    )
    which.add_argument("--process-limit", metavar="BYTES", help="cap on the resident bytes of the process: 4GiB")
    which.add_argument(
        "--available", metavar="PART", type=float, help="cap at this part of the free memory, above 0, at most 1"
    )
    which.add_argument(
        "--least-limit",
        action="store_true",
        help="find the lowest --memory-limit: begin the program again and again, some 10 to 15 times, output discarded",
    )
    add(
        "--max-overhead",
        metavar="FACTOR",
        type=float,
        help="most time that a step may recompute, as a fraction of its own; only with a cap",
    )
    add(
        "--timeline",
        metavar="FILE",
        help="HTML page of a step's memory: what holds it, and when; with or without a limit",
    )
    add(
        "--timeline-step",
        metavar="N",
        type=int,
        help="step to record, from the end of a backward to the end of the N-th; default: 3, with --budget 5",
    )
    add("--steps", metavar="N", type=int, default=4, help="backwards that --least-limit waits for; default: 4; 0: all")
    add("--patch-torch", action="store_true", help="let torch.utils.checkpoint replay operators")
    add("--quiet", action="store_true", help="no line at the end")
    add("--trial", help=argparse.SUPPRESS)  # a file for what a trial of --least-limit found
    add("-m", dest="module", action="store_true", help="PROGRAM is the name of a module")
    add("program", metavar="PROGRAM", help="a Python file")
    add("arguments", nargs=argparse.REMAINDER, help="arguments of the program")
    return parser


def _run(given: argparse.Namespace, scope: Any, timeline: Any) -> None:
    import refrain

    from ._programs import run_program, summary

    refrain.install_memory_tracking()
    if given.patch_torch:
        refrain.patch_torch()
    if given.trial:
        from ._least_program import run_trial

        run_trial(given, scope)
        return
    try:
        with scope, timeline:
            run_program(given)
    finally:
        if not given.quiet:
            more = f"; {timeline.summary()}" if given.timeline else ""
            print(summary(scope) + more, file=sys.stderr)


def _check(given: argparse.Namespace) -> None:
    limits = (given.memory_limit, given.budget, given.process_limit, given.available, given.timeline, given.trial)
    if not given.least_limit and all(value is None for value in limits):
        raise ValueError(
            "refrain: found nothing to do, expected one of --memory-limit, --budget, --process-limit, --available, "
            "--least-limit, --timeline"
        )
    if given.least_limit and (given.timeline or given.max_overhead is not None):
        raise ValueError("refrain: --least-limit: found --timeline or --max-overhead as well; leave it out")
    if given.timeline is None and given.timeline_step is not None:
        raise ValueError("refrain: --timeline-step: found no --timeline")
    if given.steps < 0:
        raise ValueError(f"refrain: --steps is {given.steps}, expected 0 or more")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 2 for arguments that cannot be, else the program's."""
    given = _parser().parse_args(arguments)
    if not given.module and not os.path.isfile(given.program):
        print(f"refrain: found no file {given.program}, expected a Python program", file=sys.stderr)
        return 2
    try:
        _check(given)
        from ._programs import scope_of, timeline_of

        scope, timeline = scope_of(given), timeline_of(given)
    except (ValueError, ImportError) as error:
        print(f"refrain: {str(error).removeprefix('refrain: ')}", file=sys.stderr)
        return 2
    if given.least_limit:
        from ._least_program import least_limit_of_program

        return least_limit_of_program(given)
    _run(given, scope, timeline)
    return 0


if __name__ == "__main__":
    sys.exit(main())
