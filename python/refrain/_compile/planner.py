"""The C++ planner, for traces of steps that others run."""

from __future__ import annotations

import ctypes
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Sequence

from .._handles import Owned
from .._library import library


#: Actions of a plan before each operator: (kind, id of a value or an operator).
Places = dict[int, list[tuple[str, int]]]


def places_of(schedule: dict[str, Any]) -> Places:
    return {entry[0]: list(zip(entry[1::2], entry[2::2])) for entry in schedule["places"]}


def resident_after(
    places: Places, outputs: Sequence[Sequence[int]], values: Sequence[dict[str, Any]], count: int
) -> set[int]:
    """Values that the first `count` operators leave resident: for an operator to come, or, where the plan made them
    again after their death, for a recomputation.

    Args:
        outputs: of each operator, the values that it makes.
        values: as in the trace: `death`, and what it `overwrites`.
    """
    dying: dict[int, list[int]] = {}
    for number, value in enumerate(values):
        dying.setdefault(value["death"], []).append(number)
    resident: set[int] = set()
    for place in range(count):
        resident.difference_update(dying.get(place, []))
        for kind, number in places.get(place, []):
            if kind == "drop":
                resident.discard(number)
                continue
            resident.update(outputs[number])
            if kind == "recompute_in_place":
                resident.difference_update(values[made].get("overwrites", -1) for made in outputs[number])
        resident.update(outputs[place])
    return resident.difference(dying.get(count, []))


@dataclass(frozen=True)
class GraphPlan:
    """A schedule for a trace, and what the planner knows of it. Bytes are those of the trace."""

    fits: bool
    peak_bytes: int
    plain_peak_bytes: int
    added_ns: int
    step_ns: int
    recomputed_ops: int
    timed_out: bool
    schedule: dict[str, Any]
    in_use: list[int]  #: at the start of each operator, and at the end
    peaks: list[int]  #: of each operator, and at the end

    @staticmethod
    def of(document: dict[str, Any]) -> GraphPlan:
        return GraphPlan(**{name: document[name] for name in GraphPlan.__dataclass_fields__})


class GraphPlanner(Owned):
    """Searches the trade-off between peak and added time of a trace once, and answers each budget from that.

    Args:
        trace: as `StepTrace.save` writes it.
        time_limit: seconds.

    Raises:
        FormatError: if it is no trace.
    """

    _close = "graph_planner_close"

    def __init__(self, trace: dict[str, Any], time_limit: float) -> None:
        self._handle = library.made(library.graph_planner_open(json.dumps(trace).encode(), time_limit))

    def range(self) -> tuple[int, int]:
        """The lowest peak of a plan, and that of the step as it is."""
        plain, least = ctypes.c_int64(), ctypes.c_int64()
        library.check(library.graph_planner_read(self._handle, ctypes.byref(plain), ctypes.byref(least)))
        return least.value, plain.value

    def plan(self, budget: int | float) -> GraphPlan:
        """For bytes (int), or a fraction (float) of the range."""
        is_fraction = isinstance(budget, float)
        text = library.graph_planner_plan(
            self._handle, 0 if is_fraction else max(0, int(budget)), float(budget) if is_fraction else -1.0
        )
        return GraphPlan.of(json.loads(library.text(text)))

    def curve(self, points: int) -> list[GraphPlan]:
        """Plans for `points` budgets, from the lowest peak to that of the step as it is; each adds no more time than
        those before it."""
        text = library.text(library.graph_planner_pareto(self._handle, points))
        return [GraphPlan.of(one) for one in json.loads(text)]


_digest: list[str] = []


def planner_version() -> str:
    """Changes whenever the library was built anew."""
    if not _digest:
        _digest.append(hashlib.sha256(library.path.read_bytes()).hexdigest()[:16])
    return _digest[0]
