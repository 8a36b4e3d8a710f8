"""`compile_options` and `compile_budget`: what a user calls."""

from __future__ import annotations

import contextlib
import importlib
import warnings
from typing import Any, Iterator

from .._budget import Budget, Bytes, budget_of
from .._memory import install_memory_tracking
from .report import CompileReport, GraphReport

__all__ = ["BudgetWarning", "CompileOptions", "CompileReport", "GraphReport", "compile_budget", "compile_options"]


class BudgetWarning(UserWarning):
    """A budget for torch.compile does not hold, or a graph is not planned for; the message says why."""


class CompileOptions(dict[str, Any]):
    """Options for `torch.compile`, with the report of what they did."""

    report: CompileReport


def _budget(budget: float | Bytes | Budget, what: str) -> Budget:
    given = budget_of(budget)
    if given._value.kind not in (0, 1):
        raise ValueError(
            f"refrain.{what}: found {given!r}, expected bytes such as '400MiB', or a fraction such as 0.5; what a "
            "process holds is no part of a graph"
        )
    return given


def _why_not(config: Any) -> str:
    """Why torch's own partitioner has to do; empty: ours can run."""
    from . import inductor

    missing = inductor.missing_parts()
    if missing:
        return f"this package does not know this torch: {'; '.join(missing)}"
    for name in ("custom_partitioner_fn", "_pre_fusion_custom_pass", "_post_fusion_custom_pass"):
        if getattr(config, name) is not None:
            return f"torch._inductor.config.{name} is in use by another: {type(getattr(config, name)).__name__}"
    return ""


def _options_of(budget: Budget, what: str) -> CompileOptions:
    install_memory_tracking()
    options = CompileOptions()
    why = _why_not(importlib.import_module("torch._inductor.config"))
    if why:
        warnings.warn(
            f"refrain.{what}: torch's partitioner is used, and no budget holds, as {why}", BudgetWarning, stacklevel=3
        )
        options.report = CompileReport(
            asked=repr(budget), is_settled=True, warning=f"torch's partitioner is used: {why}"
        )
        return options
    from . import inductor
    from .session import Session

    session = Session(budget)
    before, after = inductor.passes()
    options.update(
        {
            "custom_partitioner_fn": session.partitioner,
            "_pre_fusion_custom_pass": before,
            "_post_fusion_custom_pass": after,
        }
    )
    options.report = session.report
    return options


def compile_options(budget: float | Bytes | Budget) -> CompileOptions:
    """Options with which `torch.compile` keeps the peak of a training step within a budget, by recomputing in backward.

        options = refrain.compile_options(budget="400MiB")
        model = torch.compile(model, options=options)
        ...                                                  # a step or two
        print(options.report)

    The budget is on the peak of the step over the level at which its first compiled graph begins, as torch's CPU
    allocator counts: parameters and optimizer state are
    below that level; what is saved, gradients, workspaces and whatever runs between the graphs are above it. The first
    whole step is measured. If its peak is over, the
    graphs are planned and compiled again with the excess taken off, at most twice; if that does not do, a
    `BudgetWarning` has both numbers. Gradients are those of
    torch.compile to rounding; dropout draws what it draws without.

    Args:
        budget: bytes as "400MiB" or an int above 4096; or a float from 0.0 (the lowest peak that a plan reaches) to 1.0
            (no recomputation beyond torch's own).
            Modules and functions that run in one step share it: give them the same object.

    Returns:
        A dict for `torch.compile(..., options=...)`, to which other options may be added; `.report` says what was
        asked, predicted, measured and recomputed.

    Raises:
        ValueError: for a budget that is out of range, or of a process.

    Cost: planning takes some 2 s a graph beside its compilation. Where this torch or a graph is not known, torch's own
    partitioner runs, and a `BudgetWarning` says why.
    """
    return _options_of(_budget(budget, "compile_options"), "compile_options")


@contextlib.contextmanager
def compile_budget(budget: float | Bytes | Budget) -> Iterator[CompileReport]:
    """A `with` block in which whatever torch.compile compiles keeps a budget on the peak of the step, as by
    `compile_options`.

        with refrain.compile_budget(0.4) as report:
            train()
        print(report)

    What was compiled before stays as it is. The first steps must run inside: they compile, and are measured.

    Args:
        budget: as for `compile_options`.

    Raises:
        ValueError: as `compile_options`.
    """
    options = _options_of(_budget(budget, "compile_budget"), "compile_budget")
    config = importlib.import_module("torch._inductor.config")
    with config.patch(dict(options)) if options else contextlib.nullcontext():
        yield options.report
