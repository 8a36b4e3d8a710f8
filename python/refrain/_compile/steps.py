"""Steps as they run: which compiled graphs were called, at which level, and how high it rose."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from .. import _torch_patches
from .._memory import MemoryScope
from . import inductor

if TYPE_CHECKING:
    from .session import Session


@dataclass(frozen=True)
class Call:
    """A graph begins."""

    record: str
    is_backward: bool
    level: int  #: bytes over those at the beginning of the step


@dataclass
class Step:
    """From the first call of a planned graph to the end of the outermost backward."""

    session: Any
    compiled: int  #: graphs that the session had cut at its beginning
    memory: MemoryScope
    calls: list[Call] = field(default_factory=list)
    peak: int = 0


_lock = threading.RLock()
_sessions: dict[str, Any] = {}
_step: list[Step] = []
_MOST_CALLS = 100_000


def register(key: str, session: Session) -> None:
    """Graphs whose records begin with `key` are of this session."""
    with _lock:
        _sessions[key] = session
        if _called not in _torch_patches.before_compiled:
            _torch_patches.before_compiled.append(_called)
            _torch_patches.after_backward.append(_ended)


def _session_of(record: str) -> Any:
    return _sessions.get(record.split("-", 1)[0])


def _begin(session: Session) -> Step:
    _close()
    memory = MemoryScope()
    memory.__enter__()
    _step.append(Step(session, session.compiled, memory))
    return _step[-1]


def _close() -> Step | None:
    if not _step:
        return None
    step = _step.pop()
    step.memory.__exit__(None, None, None)
    step.peak = step.memory.peak
    return step


def _called(compiled: Any) -> None:
    """Before a compiled graph runs."""
    record = compiled.__dict__.get("_refrain_record", "")
    if record == "":
        record = inductor.record_in(compiled)
        compiled.__dict__["_refrain_record"] = record
    if record is None:
        return
    with _lock:
        session = _session_of(record)
        if session is None or session.is_settled:
            return
        is_backward = inductor.is_backward_graph(compiled)
        step = _step[-1] if _step else None
        if step is None or len(step.calls) > _MOST_CALLS or (not is_backward and _is_over(step)):
            if is_backward:
                return
            step = _begin(session)
        if step.session is session:
            step.calls.append(Call(record, is_backward, step.memory.current))


def _is_over(step: Step) -> bool:
    """Whether it ended unseen: its backward failed, or forwards ran whose backwards will not come, as nothing of them
    is held."""
    if any(call.is_backward for call in step.calls):
        return torch._C._current_graph_task_id() < 0
    return bool(step.calls) and step.memory.current <= 0


def _ended() -> None:
    """After the outermost backward."""
    with _lock:
        if not _step or not any(call.is_backward for call in _step[-1].calls):
            return
        step = _close()
        if step is not None and step.session.compiled == step.compiled:
            step.session.finished(step)
