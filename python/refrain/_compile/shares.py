"""Several graphs in one step: what each may take so that the peak of the step fits.

While graph i runs, what the graphs before it saved is held, and nothing of those whose backward is over. So other plans
move the level at which a call begins by what the graphs before it save more or less, and the peak of the step is the
largest over its calls of that level and the graph's own peak from there.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .planner import GraphPlan, places_of, resident_after

if TYPE_CHECKING:
    from .session import Record
    from .steps import Step

#: Plans on each graph's curve that are tried.
POINTS = 24
#: Budgets of one graph that are closer to each other are the same.
_STEP = 1024


@dataclass(frozen=True)
class Choice:
    """A plan of one graph, as the step sees it: bytes over the level at the beginning of a call."""

    peak: int  #: of the graph by itself
    saved: int  #: from the end of forward to the beginning of backward
    forward_peak: int
    backward_peak: int
    added_ns: int


def choice_of(trace: dict[str, Any], forward_ops: int, plan: GraphPlan) -> Choice:
    """Reads a plan for the parts of a step."""
    outputs = [op["outputs"] for op in trace["ops"]]
    resident = resident_after(places_of(plan.schedule), outputs, trace["values"], forward_ops)
    saved = sum(trace["values"][number]["bytes"] for number in resident)
    if forward_ops < len(trace["ops"]):
        saved += trace["ops"][forward_ops].get("outside", 0)  # inputs that were copied to another layout
    forward = max(plan.peaks[:forward_ops], default=0)
    return Choice(
        plan.peak_bytes, saved, forward, max(0, max(plan.peaks[forward_ops:], default=0) - saved), plan.added_ns
    )


@dataclass
class Measured:
    """A step that ran, and the records of its graphs."""

    peak: int
    calls: list[tuple[str, bool, int]]  #: record, whether it is backward, level
    records: list[Record]
    _curves: dict[str, list[Choice]] = field(default_factory=dict)

    @staticmethod
    def of(step: Step) -> Measured | None:
        """None if a graph ran that is not known: one of an earlier plan."""
        names = dict.fromkeys(call.record for call in step.calls)
        records = [step.session.record(name) for name in names]
        if any(record is None for record in records):
            return None
        return Measured(step.peak, [(call.record, call.is_backward, call.level) for call in step.calls], records)

    @property
    def is_single(self) -> bool:
        """Whether one graph ran once: its own peak is the step's."""
        return sum(not is_backward for _, is_backward, _ in self.calls) == 1

    @functools.cached_property
    def _now(self) -> dict[str, Choice]:
        """Of the plans that ran."""
        return {record.id: choice_of(record.trace, record.forward_ops, record.plan) for record in self.records}

    def _curve(self, record: Record) -> list[Choice]:
        """From the lowest peak to that without recomputation."""
        if record.id not in self._curves:
            self._curves[record.id] = [
                choice_of(record.trace, record.forward_ops, plan) for plan in record.planner().curve(POINTS)
            ]
        return self._curves[record.id]

    def _peaks(self, choices: dict[str, Choice]) -> list[int]:
        """Of each call, by other plans than those that ran."""
        peaks: list[int] = []
        waiting: Counter[str] = Counter()  # for their backward
        moved = 0
        for record, is_backward, level in self.calls:
            choice = choices[record]
            if is_backward:
                peaks.append(level + moved + choice.backward_peak)
                if waiting[record] > 0:
                    waiting[record] -= 1
                    moved -= choice.saved - self._now[record].saved
            else:
                peaks.append(level + moved + choice.forward_peak)
                moved += choice.saved - self._now[record].saved
                waiting[record] += 1
        return peaks

    def predicted_peak(self) -> int:
        """By the plans that ran."""
        return max(self._peaks(self._now), default=0)

    def range(self) -> tuple[int, int]:
        """Predicted peaks of the step with all graphs at their lowest, and without recomputation."""
        ends = [{record.id: self._curve(record)[k] for record in self.records} for k in (0, -1)]
        least, plain = (max(self._peaks(end), default=0) for end in ends)
        return min(least, plain), plain

    def asks(self, target: int) -> dict[str, int]:
        """Bytes to plan each graph for, by fingerprint, so that the step fits. What was measured above the prediction
        is taken off the target."""
        allowed = target - max(0, self.peak - self.predicted_peak())
        return self._alone(allowed) if self.is_single else self._shared(allowed)

    def _alone(self, target: int) -> dict[str, int]:
        """Of one graph: the largest budget whose plan fits."""
        record = self.records[0]
        least, most = record.planner().range()
        while most - least > _STEP:
            ask = (least + most) // 2
            choice = choice_of(record.trace, record.forward_ops, record.planner().plan(ask))
            fits = max(self._peaks({record.id: choice})) <= target
            least, most = (ask, most) if fits else (least, ask)
        return {record.fingerprint: least}

    def _shared(self, target: int) -> dict[str, int]:
        at = {record.id: POINTS - 1 for record in self.records}
        runs = {
            record.id: sum(name == record.id and not is_backward for name, is_backward, _ in self.calls)
            for record in self.records
        }
        curves = {record.id: self._curve(record) for record in self.records}

        def excess(places: dict[str, int]) -> int:
            return sum(
                max(0, peak - target)
                for peak in self._peaks({name: curves[name][k] for name, k in places.items()})
            )

        over = excess(at)
        while over > 0:
            best: tuple[float, str, int] | None = None
            for name, k in at.items():
                for lower in range(k):
                    gained = over - excess({**at, name: lower})
                    cost = (curves[name][lower].added_ns - curves[name][k].added_ns) * runs[name] + 1
                    if gained > 0 and (best is None or cost / gained < best[0]):
                        best = cost / gained, name, lower
            if best is None:
                break
            at[best[1]] = best[2]
            over = excess(at)
        return {record.fingerprint: curves[record.id][at[record.id]].peak for record in self.records}
