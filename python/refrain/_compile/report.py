"""What a budget for torch.compile came to, per graph."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from .._memory import format_bytes


@dataclass
class GraphReport:
    """One compiled graph of forward and backward."""

    name: str  #: of the function that Dynamo compiled, and its line
    asked: int | None = None  #: bytes of this graph's own peak that its plan was made for
    predicted: int | None = None  #: the plan's peak
    plain: int | None = None  #: predicted without recomputation
    least: int | None = None  #: predicted for the plan of lowest peak
    saved: int = 0  #: bytes that forward hands to backward
    recomputed: dict[str, int] = field(default_factory=dict)  #: operators by name, with how often one is computed again
    added_ms: float = 0.0  #: predicted
    planning_s: float = 0.0  #: the graph, its plan, and writing it; without what operators were measured for
    measuring_s: float = 0.0
    fallback: str = ""  #: why torch's own partitioner cut this graph; empty: it did not
    from_cache: bool = False  #: torch's caches had it compiled

    def __str__(self) -> str:
        if self.fallback:
            return f"{self.name}: torch's partitioner, as {self.fallback}"
        if self.predicted is None or self.plain is None or self.least is None:
            return f"{self.name}: not planned yet"
        again = ", ".join(
            f"{count} {name}" for name, count in sorted(self.recomputed.items(), key=lambda pair: -pair[1])[:4]
        )
        return (
            f"{self.name}: peak {format_bytes(self.predicted)} predicted, of {format_bytes(self.least)} to "
            f"{format_bytes(self.plain)}; {format_bytes(self.saved)} saved, {sum(self.recomputed.values())} operators "
            f"recomputed{f' ({again})' if again else ''}, "
            f"{self.added_ms:.1f} ms added; planned in {self.planning_s:.1f} s"
        )


@dataclass
class CompileReport:
    """What a budget for torch.compile asked, predicted and measured. Bytes are over the level before the step."""

    asked: str = ""
    target: int | None = None  #: bytes that the peak of the step is to keep; of a fraction known when the graphs are
    predicted: int | None = None  #: peak of the step by its plans
    measured: int | None = None  #: peak of the last step that was measured; None: none yet
    replans: int = 0  #: compiled again, as a peak was over its target
    is_settled: bool = False  #: no further step is measured
    warning: str = ""  #: why the budget does not hold; empty: it does, or it is not known yet
    graphs: list[GraphReport] = field(default_factory=list)

    @property
    def fits(self) -> bool | None:
        """Whether the measured peak is within the target; None if no step was measured yet."""
        if self.measured is None or self.target is None:
            return None
        return self.measured <= self.target

    def __str__(self) -> str:
        def text(size: int | None) -> str:
            return "unknown" if size is None else format_bytes(size)

        lines = [
            f"asked {self.asked} ({text(self.target)}), predicted {text(self.predicted)}, measured "
            f"{text(self.measured)}, planned {self.replans + 1} times"
        ]
        lines += [f"  {graph}" for graph in self.graphs]
        return "\n".join(lines + ([f"  {self.warning}"] if self.warning else []))


def counted(names: list[str]) -> dict[str, int]:
    return dict(Counter(names))
