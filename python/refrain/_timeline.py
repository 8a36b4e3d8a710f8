"""Every allocation and free of a stretch of training, with what it was for."""

from __future__ import annotations

import ctypes
import json
import os
from dataclasses import dataclass
from typing import Any, Callable, Iterable, Iterator

import torch

from . import _torch_patches
from ._handles import Owned, Scope
from ._library import impls, library
from ._modules import ModulePaths
from ._report import Document, machine, write_atomically

__all__ = [
    "MemoryBlock", "MemoryEvent", "MemoryPhaseSpan", "MemoryTimeline", "MemoryTimelineReport",
    "PhaseScope", "ResidentSample",
]  # fmt: skip

PHASES = ("forward", "recompute", "backward", "optimizer")
KINDS = (
    "parameter",
    "gradient",
    "optimizer_state",
    "buffer",
    "input",
    "activation_kept",
    "recomputed",
    "temporary",
    "workspace",
    "other",
)


@dataclass(frozen=True)
class MemoryBlock:
    """One allocation. Times are microseconds since the timeline began."""

    bytes: int  #: as requested
    #: "parameter", "gradient", "optimizer_state", "buffer", "input", "activation_kept", "recomputed", "temporary",
    #: "workspace" or "other"
    kind: str
    phase: str  #: in which it was made: "forward", "recompute", "backward" or "optimizer"
    op: str  #: outermost operator that made it, "aten::linear"; in backward the graph's node; "" outside of both
    module: str  #: a tensor's name, else the path of the modules that ran when it was made
    sizes: tuple[int, ...]  #: of the first tensor seen in it; empty if none was
    begin_us: float
    end_us: float
    preexisting: bool  #: alive when the timeline began
    outlives_recording: bool  #: alive when it ended


@dataclass(frozen=True)
class MemoryEvent:
    """An allocation or a free."""

    time_us: float
    block: int  #: index in `MemoryTimelineReport.blocks`
    is_free: bool
    level: int  #: bytes allocated afterwards


@dataclass(frozen=True)
class MemoryPhaseSpan:
    """A stretch in which the thread that made the timeline stayed in one phase."""

    phase: str
    begin_us: float
    end_us: float


@dataclass(frozen=True)
class ResidentSample:
    """The resident bytes of the process, everything included."""

    time_us: float
    bytes: int


class _Values(ctypes.Structure):
    _fields_ = (
        [
            (name, ctypes.c_int64)
            for name in ("base_bytes", "peak_bytes", "allocations", "resident_before", "resident_peak")
        ]
        + [(name, ctypes.c_double) for name in ("peak_us", "end_us")]
        + [(name, ctypes.c_int64) for name in ("blocks", "events", "phases", "resident", "peak_blocks")]
        + [("peak_by_kind", ctypes.c_int64 * len(KINDS))]
    )


class _Block(ctypes.Structure):
    _fields_ = [
        ("bytes", ctypes.c_int64), ("kind", ctypes.c_int32), ("phase", ctypes.c_int32),
        ("begin_us", ctypes.c_double), ("end_us", ctypes.c_double),
        ("op", ctypes.c_void_p), ("module", ctypes.c_void_p),
        ("op_length", ctypes.c_size_t), ("module_length", ctypes.c_size_t),
        ("sizes", ctypes.POINTER(ctypes.c_int64)), ("dimensions", ctypes.c_size_t),
        ("preexisting", ctypes.c_int32), ("outlives_recording", ctypes.c_int32),
    ]  # fmt: skip


class _Event(ctypes.Structure):
    _fields_ = [
        ("time_us", ctypes.c_double),
        ("block", ctypes.c_int64),
        ("level", ctypes.c_int64),
        ("is_free", ctypes.c_int64),
    ]


class _Span(ctypes.Structure):
    _fields_ = [("phase", ctypes.c_int64), ("begin_us", ctypes.c_double), ("end_us", ctypes.c_double)]


class _Sample(ctypes.Structure):
    _fields_ = [("time_us", ctypes.c_double), ("bytes", ctypes.c_int64)]


def _name(data: int | None, length: int) -> str:
    return ctypes.string_at(data, length).decode(errors="replace") if data and length else ""


class MemoryTimelineReport(Owned, Document):
    """The result of a `MemoryTimeline`. `print` shows it as a table, a notebook as a picture; `write_html` writes the
    page that the tool draws.

    The bytes of `blocks` alive at any time, by kind or together, sum to the allocator's level then. Bytes are of
    torch's CPU allocator; times are microseconds since the beginning. Each list is made anew when it is asked for.
    """

    _close = "timeline_report_close"

    def __init__(self, handle: int, model: str, strategy: str) -> None:
        self._handle = handle
        self.model, self.strategy = model, strategy
        self._values = _Values()
        library.check(library.timeline_read(handle, ctypes.byref(self._values), ctypes.sizeof(self._values)))

    def _list(self, name: str, of: type) -> Any:
        count = getattr(self._values, name)
        found = (of * count)()
        library.check(getattr(library, "timeline_" + name)(self._handle, found, count))
        return found

    @property
    def blocks(self) -> list[MemoryBlock]:
        """All allocations: those from before first, then in the order of allocation."""
        return [
            MemoryBlock(
                bytes=b.bytes,
                kind=KINDS[b.kind],
                phase=PHASES[b.phase],
                op=_name(b.op, b.op_length),
                module=_name(b.module, b.module_length),
                sizes=tuple(b.sizes[: b.dimensions]),
                begin_us=b.begin_us,
                end_us=b.end_us,
                preexisting=bool(b.preexisting),
                outlives_recording=bool(b.outlives_recording),
            )
            for b in self._list("blocks", _Block)
        ]

    @property
    def events(self) -> list[MemoryEvent]:
        """Allocations and frees in the order in which the allocator counted them, all threads together."""
        return [MemoryEvent(e.time_us, e.block, bool(e.is_free), e.level) for e in self._list("events", _Event)]

    @property
    def phases(self) -> list[MemoryPhaseSpan]:
        return [MemoryPhaseSpan(PHASES[span.phase], span.begin_us, span.end_us) for span in self._list("phases", _Span)]

    @property
    def resident(self) -> list[ResidentSample]:
        """At the beginning, a millisecond apart at least, and at the end; empty where the system does not say."""
        return [ResidentSample(sample.time_us, sample.bytes) for sample in self._list("resident", _Sample)]

    @property
    def peak_blocks(self) -> list[int]:
        """Indices of the blocks alive at the peak, largest first."""
        return list(self._list("peak_blocks", ctypes.c_int64))

    @property
    def peak_by_kind(self) -> dict[str, int]:
        """Bytes of each kind at the peak; they sum to `peak_bytes`."""
        return dict(zip(KINDS, self._values.peak_by_kind))

    base_bytes = property(lambda self: int(self._values.base_bytes), doc="Bytes allocated when it began.")
    peak_bytes = property(
        lambda self: int(self._values.peak_bytes),
        doc="The highest level, to the byte that of the allocator in the same stretch.",
    )
    peak_us = property(lambda self: float(self._values.peak_us), doc="When it was first reached.")
    end_us = property(lambda self: float(self._values.end_us), doc="When the recording ended.")
    allocations = property(lambda self: int(self._values.allocations), doc="Number of allocations.")
    resident_before = property(
        lambda self: int(self._values.resident_before), doc="Resident bytes of the process when tracking was installed."
    )
    resident_peak = property(
        lambda self: int(self._values.resident_peak), doc="The highest of `resident`; 0 if it is empty."
    )

    def text(self, top: int = 12) -> str:
        """Phases, kinds at the peak, and the `top` largest blocks alive there."""
        return library.text(library.timeline_text(self._handle, top))

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"<MemoryTimelineReport: peak {self.peak_bytes} bytes, {self.allocations} allocations>"

    def document(self) -> dict[str, Any]:
        """The result as the tool's `--json` has it. Resident bytes are left out where they would flatten the picture:
        where what else the process has beside the libraries is more than four times the peak."""
        found: dict[str, Any] = json.loads(library.text(library.timeline_json(self._handle)))
        if self.resident_peak - self.resident_before > 4 * self.peak_bytes:
            found["resident"] = []
        return {**found, "model": self.model, "config": {}, "machine": machine(), "strategy": self.strategy}

    def trace(self) -> str:
        """A trace for chrome://tracing and ui.perfetto.dev: phases, bytes by kind at every event, and a bar for each
        block.
        """
        return library.text(library.timeline_trace(self._handle))

    def write_trace(self, path: str | os.PathLike[str]) -> None:
        """Writes `trace()` to a file, atomically."""
        write_atomically(path, self.trace())


class PhaseScope(Scope):
    """A `with` block that puts this thread's code, outside of backward and recomputation, into a phase of a timeline:
    "optimizer" for gradient clipping.

    Raises:
        ValueError: for a phase other than "forward", "recompute", "backward" and "optimizer".
    """

    _close = "phase_scope_close"

    def __init__(self, phase: str) -> None:
        if phase not in PHASES:
            raise ValueError(f"refrain.PhaseScope: phase is {phase!r}, expected one of {', '.join(PHASES)}")
        self._phase = PHASES.index(phase)

    def _open(self) -> int | None:
        handle: int | None = library.phase_scope_open(self._phase)
        return handle


def _states(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> Iterator[tuple[str, torch.Tensor]]:
    for parameter, state in optimizer.state.items():
        for field, value in state.items() if isinstance(state, dict) else ():
            if isinstance(value, torch.Tensor):
                yield f"{names.get(id(parameter), '')} {field}".strip(), value


class MemoryTimeline:
    """A `with` block in which every allocation and free of torch's CPU allocator is recorded, with what it was for.

        with refrain.MemoryTimeline(model, optimizer) as timeline:
            loss_of(batch).backward()
            optimizer.step()
        print(timeline.report)                     # a table; in a notebook, `timeline.report` is a picture
        timeline.report.write_html("step.html")

    Phases are detected: a running backward, a replay, and after a backward what runs without gradients or in the
    optimizer's `step`. `PhaseScope` names the rest.

    Args:
        model: its parameters, gradients and buffers are known by name, and its modules by their paths.
        optimizer: its state is known by name.
        name: the model's name in the picture; default: its class.
        strategy: what the picture says of how the step ran.

    Raises:
        ValueError: if another timeline is recording; there is one at a time in a process.

    Cost while it records: 0.25 us an operator, 0.15 us an allocation or free, 3 us a module's call; 96 bytes an event.
    It puts hooks on modules: what torch.compile compiled is compiled again. Threads: sees all; `phases` are those of
    the thread that opened it.
    """

    def __init__(
        self,
        model: torch.nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        name: str = "",
        strategy: str = "none",
    ) -> None:
        self._model, self._optimizer = model, optimizer
        self._name = name or (type(model).__name__ if model is not None else "program")
        self._strategy = strategy
        self._handle = 0
        self._phase: PhaseScope | None = None
        self._undo: list[Callable[[], Any]] = []
        self._report: MemoryTimelineReport | None = None

    def __enter__(self) -> MemoryTimeline:
        if self._handle:
            raise RuntimeError("refrain.MemoryTimeline: it is recording already; make one for each `with`")
        library.check(library.install_memory_tracking())
        self._handle = library.made(library.timeline_open())
        self._know_all()
        _torch_patches.after_backward.append(self._know_gradients)
        self._undo.append(lambda: _torch_patches.after_backward.remove(self._know_gradients))
        if self._model is not None:
            self._undo.append(ModulePaths(self._model).close)
        if self._optimizer is not None:
            self._undo.append(self._optimizer.register_step_pre_hook(self._step_begins).remove)
            self._undo.append(self._optimizer.register_step_post_hook(self._step_ends).remove)
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._handle:
            self.stop()

    def annotate(self, kind: str, tensors: torch.Tensor | Iterable[torch.Tensor], name: str = "") -> None:
        """Says what tensors alive now are for. What was known of them before is kept.

        Args:
            kind: as `MemoryBlock.kind`, mostly "input".
            name: shown as their module.

        Raises:
            ValueError: for another kind.
            RuntimeError: when it is not recording.
        """
        if kind not in KINDS:
            raise ValueError(f"refrain.MemoryTimeline.annotate: kind is {kind!r}, expected one of {', '.join(KINDS)}")
        if not self._handle:
            raise RuntimeError("refrain.MemoryTimeline.annotate: it is not recording; call it inside of its `with`")
        self._annotate(
            kind, [(name, tensor) for tensor in ([tensors] if isinstance(tensors, torch.Tensor) else tensors)]
        )

    def stop(self) -> MemoryTimelineReport:
        """Ends the recording; the end of the `with` does so. Cost: about 1 us an event.

        Raises:
            RuntimeError: when it is not recording.
            UnsupportedError: if the system had no memory for more events.
        """
        if not self._handle:
            raise RuntimeError("refrain.MemoryTimeline.stop: it is not recording; open it by `with`")
        self._know_all()
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()
        self._step_ends()
        handle, self._handle = self._handle, 0
        try:
            self._report = MemoryTimelineReport(library.made(library.timeline_stop(handle)), self._name, self._strategy)
        finally:
            library.timeline_close(handle)
        return self._report

    @property
    def report(self) -> MemoryTimelineReport:
        """What it saw, once it has ended."""
        if self._report is None:
            raise RuntimeError("refrain.MemoryTimeline.report: the recording has not ended; read it after the `with`")
        return self._report

    def _step_begins(self, *_: Any) -> None:
        self._step_ends()
        self._phase = PhaseScope("optimizer").__enter__()

    def _step_ends(self, *_: Any) -> None:
        phase, self._phase = self._phase, None
        if phase is not None:
            phase.__exit__()

    def _annotate(self, kind: str, named: Iterable[tuple[str, torch.Tensor]]) -> None:
        found = [(name, tensor) for name, tensor in named if tensor.device.type == "cpu"]
        names = (ctypes.c_char_p * len(found))(*[name.encode() for name, _ in found])
        tensors = [tensor for _, tensor in found]
        library.check(library.timeline_annotate(self._handle, KINDS.index(kind), impls(tensors), names, len(found)))

    def _know_gradients(self) -> None:
        """At the end of a backward, at once: they may be dropped next."""
        if self._handle and self._model is not None:  # another call at this end may have ended the recording
            self._annotate(
                "gradient", [(name, p.grad) for name, p in self._model.named_parameters() if p.grad is not None]
            )

    def _know_all(self) -> None:
        if self._model is not None:
            self._annotate("parameter", self._model.named_parameters())
            self._annotate("buffer", self._model.named_buffers())
        self._know_gradients()
        if self._optimizer is not None:
            names = {id(p): name for name, p in self._model.named_parameters()} if self._model is not None else {}
            self._annotate("optimizer_state", _states(self._optimizer, names))
