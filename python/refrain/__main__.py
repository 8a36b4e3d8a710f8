"""`python -m refrain run --memory-limit 2GiB train.py ...`: runs an unmodified program within a limit; `python -m refrain
pareto --compile train.py ...`: what budgets for torch.compile do to it."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, Callable, Sequence

EXAMPLES = """examples:
  python -m refrain run --memory-limit 2GiB train.py --epochs 3
  python -m refrain run --budget 0.5 -m package.train
  python -m refrain run --timeline step.html train.py
  python -m refrain run --least-limit train.py
"""
PARETO_EXAMPLES = """examples:
  python -m refrain pareto --compile train.py --epochs 3
  python -m refrain pareto --compile --points 9 --html pareto.html -m package.train
"""


def _add_program(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="no line of progress, or at the end")
    parser.add_argument("--trial", help=argparse.SUPPRESS)  # in a process that the command began: a file for what it found
    parser.add_argument("-m", dest="module", action="store_true", help="PROGRAM is the name of a module")
    parser.add_argument("program", metavar="PROGRAM", help="a Python file")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of the program")


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="run an unmodified program within a limit",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    _add_program(run)


def _add_pareto(commands: Any) -> None:
    pareto = commands.add_parser(
        "pareto",
        help="peak and time of an unmodified program under budgets for torch.compile, beside torch's own",
        description="Begins the program once for each budget, until enough steps are measured; its output is discarded.",
        epilog=PARETO_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = pareto.add_argument
    add("--compile", action="store_true", required=True, help="the program uses torch.compile")
    add("--points", metavar="N", type=int, default=5, help="budgets of ours, evenly from 1.0 to 0.0; default: 5")
    add(
        "--torch",
        dest="torch_budgets",
        metavar="LIST",
        default="0.7,0.5,0.3,0.0",
        help="torch's `activation_memory_budget`s beside 1.0, which always runs; default: 0.7,0.5,0.3,0.0",
    )
    add("--steps", metavar="N", type=int, default=10, help="steps to measure under each budget; default: 10")
    add("--html", metavar="FILE", help="page with the curves")
    add("--json", metavar="FILE", help="the numbers, for `refrain report`")
    add("--under", help=argparse.SUPPRESS)  # of a trial: whose budget, and which
    _add_program(pareto)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m refrain",
        description="Trains torch models in less memory.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_run(commands)
    _add_pareto(commands)
    return parser


def _run(given: argparse.Namespace, scope: Any, timeline: Any) -> int:
    import refrain

    from ._programs import run_program, summary

    refrain.install_memory_tracking()
    if given.patch_torch:
        refrain.patch_torch()
    if given.trial:
        from ._least_program import run_trial

        run_trial(given, scope)
        return 0
    try:
        with scope, timeline:
            run_program(given)
    finally:
        if not given.quiet:
            more = f"; {timeline.summary()}" if given.timeline else ""
            print(summary(scope) + more, file=sys.stderr)
    return 0


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


def _pareto(given: argparse.Namespace) -> Callable[[], int]:
    """Checks the arguments. @return what to do."""
    from ._compile import pareto
    from ._programs import check_can_write

    if given.trial:
        return lambda: pareto.run_trial(given)
    given.torch_budgets = pareto.budgets_of(given.torch_budgets)
    if given.points < 2:
        raise ValueError(f"refrain: --points is {given.points}, expected 2 or more")
    if given.steps < 1:
        raise ValueError(f"refrain: --steps is {given.steps}, expected 1 or more")
    for option, path in (("--html", given.html), ("--json", given.json)):
        if path:
            check_can_write(option, path)
    return lambda: pareto.pareto_of_program(given)


def _run_command(given: argparse.Namespace) -> Callable[[], int]:
    """Checks the arguments. @return what to do."""
    _check(given)
    from ._least_program import least_limit_of_program
    from ._programs import scope_of, timeline_of

    scope, timeline = scope_of(given), timeline_of(given)
    if given.least_limit:
        return lambda: least_limit_of_program(given)
    return lambda: _run(given, scope, timeline)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 2 for arguments that cannot be, else the program's."""
    given = _parser().parse_args(arguments)
    if not given.module and not os.path.isfile(given.program):
        print(f"refrain: found no file {given.program}, expected a Python program", file=sys.stderr)
        return 2
    try:
        action = _pareto(given) if given.command == "pareto" else _run_command(given)
    except (ValueError, ImportError) as error:
        print(f"refrain: {str(error).removeprefix('refrain: ')}", file=sys.stderr)
        return 2
    return action()


if __name__ == "__main__":
    sys.exit(main())
