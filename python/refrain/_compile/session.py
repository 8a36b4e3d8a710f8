"""A budget through its compilations and first steps: which graphs there are, what each is planned for, what a step
measured, and whether to plan again."""

from __future__ import annotations

import hashlib
import json
import threading
import time
import types
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._budget import Budget
from .._library import library
from .._memory import format_bytes
from . import cut, emit, graph, inductor, ranks, shares, steps
from .api import BudgetWarning
from .cost import cache_folder, costs, write_text
from .planner import GraphPlan, GraphPlanner, places_of, planner_version
from .report import CompileReport, GraphReport, counted

#: Seconds that a graph's plan is searched for.
PLAN_S = 1.0
#: Newest plans that are kept in the cache's folder.
MOST_RECORDS = 200
#: A fraction is one of predicted peaks: a measured one that is over by no more than this part of it is let be.
FRACTION_SLACK = 0.02
#: A peak that is over is planned for again so often.
MOST_REPLANS = 2


@dataclass
class Record:
    """A graph that was planned for."""

    id: str
    fingerprint: str  #: of the joint graph, whatever the budget
    trace: dict[str, Any]
    plan: GraphPlan
    forward_ops: int
    report: GraphReport
    _planner: GraphPlanner | None = field(default=None, repr=False)

    def planner(self) -> GraphPlanner:
        if self._planner is None:
            self._planner = GraphPlanner(self.trace, PLAN_S)
        return self._planner

    def save(self, folder: Path) -> None:
        """For a later process whose compiled graph comes out of torch's cache."""
        document = {
            "fingerprint": self.fingerprint,
            "trace": self.trace,
            "plan": self.plan.__dict__,
            "forward_ops": self.forward_ops,
            "report": self.report.__dict__,
        }  # fmt: skip
        try:
            write_text(folder / f"{self.id}.json", json.dumps(document))
            kept = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
            for path in kept[:-MOST_RECORDS]:
                path.unlink(missing_ok=True)
        except OSError:
            pass  # it is known in this process

    @staticmethod
    def load(folder: Path, name: str) -> Record | None:
        try:
            found = json.loads((folder / f"{name}.json").read_text())
            report = GraphReport(**found["report"])
            report.from_cache = True
            return Record(
                name, found["fingerprint"], found["trace"], GraphPlan.of(found["plan"]), found["forward_ops"], report
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None


def fingerprint_of(trace: dict[str, Any]) -> str:
    """Of what is in a trace but times."""
    shape = [[op["name"], op["inputs"], op["outputs"]] for op in trace["ops"]] + trace["values"]
    return hashlib.sha256(json.dumps(shape).encode()).hexdigest()[:16]


class Session:
    """One budget. Its partitioner is what `compile_options` hands to torch.compile."""

    def __init__(self, budget: Budget) -> None:
        self._lock = threading.RLock()
        self._fraction: float | None = budget._value.part if budget._value.kind == 1 else None
        self._bytes = int(budget._value.bytes)
        self.report = CompileReport(
            asked=f"{self._fraction}" if self._fraction is not None else format_bytes(self._bytes)
        )
        if self._fraction is None:
            self.report.target = self._bytes
        self.records: dict[str, Record] = {}
        self._asks: dict[str, int] = {}  #: bytes for a graph, by fingerprint, where it is not the budget itself
        self._codes: set[types.CodeType] = set()
        self._compiled = 0
        self._is_agreed = False  #: a plan is that of all ranks: one that compiles again alone would wait for the others
        self.partitioner = inductor.partitioner_of(self._partition, self.key)

    # ---- Compilation

    def key(self) -> str:
        """Of the plans that it makes now, for torch's caches."""
        with self._lock:
            code = inductor.code_being_compiled()
            if code is not None:
                self._codes.add(code)
            words = [
                sources_digest(),
                planner_version(),
                costs().digest(),
                self.report.asked,
                sorted(self._asks.items()),
            ]
            key = hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]
        steps.register(key, self)
        return key

    @property
    def compiled(self) -> int:
        """How many graphs were cut so far: whoever measures a step sees whether one was cut in it."""
        return self._compiled

    def _ask(self, fingerprint: str) -> int | float:
        if fingerprint in self._asks:
            return self._asks[fingerprint]
        return self._fraction if self._fraction is not None else self._bytes

    def _partition(
        self,
        gm: Any,
        joint_inputs: Any,
        *,
        num_fwd_outputs: int,
        static_lifetime_input_indices: Any = None,
        compiler: str = "inductor",
    ) -> Any:
        key, code = self.key(), inductor.code_being_compiled()
        report = GraphReport(f"{code.co_name}:{code.co_firstlineno}" if code else f"graph {self._compiled}")
        self._compiled += 1
        start, measured = time.perf_counter(), costs().measuring_s
        try:
            joint = graph.JointGraph(gm, cut.prepare(gm, static_lifetime_input_indices, num_fwd_outputs))
            forward, backward = self._planned(joint, key, report)
        except Exception as error:
            why = str(error) if isinstance(error, cut.NotPlanned) else f"{type(error).__name__}: {error}"
            report.fallback = f"there is {why}" if isinstance(error, cut.NotPlanned) else f"planning failed: {why}"
            self.report.graphs.append(report)
            warnings.warn(
                f"refrain.compile_options: torch's partitioner cuts {report.name}, as {report.fallback}. The budget "
                "does not count this graph.",
                BudgetWarning,
                stacklevel=2,
            )
            return inductor.partitioners().min_cut_rematerialization_partition(
                gm,
                joint_inputs,
                compiler=compiler,
                num_fwd_outputs=num_fwd_outputs,
                static_lifetime_input_indices=static_lifetime_input_indices,
            )
        report.measuring_s = costs().measuring_s - measured
        report.planning_s = time.perf_counter() - start - report.measuring_s
        self.report.graphs.append(report)
        return forward, backward

    def _planned(self, joint: graph.JointGraph, key: str, report: GraphReport) -> tuple[Any, Any]:
        known = costs()
        trace = joint.trace(known.of, report.name)
        known.save()
        fingerprint = fingerprint_of(trace)
        ask = self._ask(fingerprint)
        planner = GraphPlanner(trace, PLAN_S)
        plan = planner.plan(ask)
        if ranks.agrees(joint.module.graph):
            plan = ranks.plan_of_rank_0(fingerprint, plan)
            self._is_agreed = True
        name = f"{key}-{fingerprint}"
        report.least, report.plain = planner.range()
        is_bounded = ask < (1.0 if isinstance(ask, float) else report.plain)
        emitted = emit.emit(joint, places_of(plan.schedule), name, is_bounded)
        report.asked = int(report.least + ask * (report.plain - report.least)) if isinstance(ask, float) else ask
        report.predicted, report.added_ms = plan.peak_bytes, plan.added_ns / 1e6
        report.saved, report.recomputed = emit.saved_bytes(emitted.saved), counted(emitted.recomputed)
        record = Record(name, fingerprint, trace, plan, joint.forward_ops, report, planner)
        with self._lock:
            self.records[name] = record
        record.save(cache_folder() / "records")
        return emitted.forward, emitted.backward

    def record(self, name: str) -> Record | None:
        """Of a graph that runs: one of this process, or of another whose compiled graph came out of torch's cache."""
        with self._lock:
            if name not in self.records:
                found = Record.load(cache_folder() / "records", name)
                if found is None:
                    return None
                self.records[name] = found
                self.report.graphs.append(found.report)
            return self.records[name]

    # ---- Steps

    @property
    def is_settled(self) -> bool:
        return self.report.is_settled

    def finished(self, step: steps.Step) -> None:
        """A whole step ran in which nothing was compiled."""
        with self._lock:
            measured = shares.Measured.of(step)
            if measured is None or self.is_settled:
                return
            self._compare(measured)

    def _compare(self, measured: shares.Measured) -> None:
        report = self.report
        report.measured = measured.peak
        report.predicted = measured.predicted_peak()
        if self._fraction is not None:
            if report.target is None:
                least, plain = measured.range()
                report.target = int(least + self._fraction * (plain - least))
            if self._fraction >= 1.0:
                report.is_settled = True
                return
        target = report.target or 0
        slack = 0 if self._fraction is None else int(FRACTION_SLACK * target)
        if measured.peak <= target + slack:
            report.is_settled = True
            return
        sizes = f"the measured peak is {format_bytes(measured.peak)}, the budget {format_bytes(target)}"
        if self._is_agreed:
            self._give_up(f"{sizes}; plans that ranks agree on are not made again")
            return
        if report.replans >= MOST_REPLANS:
            self._give_up(f"after {report.replans} further plans {sizes}")
            return
        asks = measured.asks(target)
        if not any(asks[record.fingerprint] < (record.report.asked or 0) for record in measured.records):
            self._give_up(f"{sizes}; the lowest peak of a plan is {format_bytes(measured.range()[0])}")
            return
        self._asks.update(asks)
        report.replans += 1
        report.graphs = [graph for graph in report.graphs if graph.fallback]
        self.records.clear()
        inductor.forget(self._codes)

    def _give_up(self, why: str) -> None:
        self.report.is_settled = True
        self.report.warning = f"does not fit: {why}"
        warnings.warn(
            f"refrain.compile_options: the budget does not hold: {why}. Ask for more, or take the peak as it is.",
            BudgetWarning,
            stacklevel=2,
        )


_sources: list[str] = []


def sources_digest() -> str:
    """Of this package's files."""
    if not _sources:
        digest = hashlib.sha256()
        for path in sorted(Path(__file__).parent.glob("*.py")):
            digest.update(path.read_bytes())
        digest.update(library.version.encode())
        _sources.append(digest.hexdigest()[:16])
    return _sources[0]
