"""Exceptions of the library, as Python's own kinds."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Iterable, NoReturn

import torch

if TYPE_CHECKING:
    from ._library import Library

__all__ = [
    "CheckpointError", "FormatError", "InternalError", "OffloadError", "OutOfMemoryNumbers", "UnsupportedError",
    "out_of_memory_numbers",
]  # fmt: skip


class CheckpointError(RuntimeError):
    """Backward cannot recompute a value: something that it was computed from was modified after forward."""


class OffloadError(RuntimeError):
    """Offloaded bytes cannot be stored or read back: full disk, failing disk. Parameters are unchanged."""


class FormatError(ValueError):
    """A file has another format than expected: it is empty, truncated, or of another version."""


class UnsupportedError(RuntimeError):
    """The machine, torch or another library in the process lacks what is needed; the message names it."""


class InternalError(RuntimeError):
    """A defect of this library, found by one of its own checks. Please report it."""


OUT_OF_MEMORY = 9
CALLBACK_FAILED = 12
_KINDS: dict[int, type[Exception]] = {
    1: ValueError,
    2: FormatError,
    3: OSError,
    4: UnsupportedError,
    5: InternalError,
    6: CheckpointError,
    7: OffloadError,
    OUT_OF_MEMORY: torch.OutOfMemoryError,
}


REASONS = ("memory_limit", "memory_cap", "process_limit", "max_overhead")


@dataclass(frozen=True)
class OutOfMemoryNumbers:
    """The numbers of a refusal, in bytes: of tensors, or resident ones of the process for "process_limit"."""

    #: "memory_limit": a `MemoryLimit`; "memory_cap": nothing more can be evicted; "process_limit": the process's limit;
    #: "max_overhead": the limit holds, but recomputing takes longer than allowed
    reason: str
    requested: int  #: by the allocation that was refused
    in_use: int  #: when it was, what could have been evicted left out
    limit: int  #: in force
    min_limit: int  #: the smallest limit under which this allocation could have succeeded


FIELDS = ("reason", "requested", "in_use", "limit", "min_limit")


class _Numbers(ctypes.Structure):
    _fields_ = [("reason", ctypes.c_int32), ("unused", ctypes.c_int32)] + [
        (name, ctypes.c_int64) for name in FIELDS[1:]
    ]

    def values(self) -> OutOfMemoryNumbers:
        return OutOfMemoryNumbers(REASONS[self.reason], self.requested, self.in_use, self.limit, self.min_limit)


def out_of_memory_numbers(error: BaseException) -> OutOfMemoryNumbers | None:
    """The numbers of a `torch.OutOfMemoryError` that a limit, cap or budget of this library raised, also inside of an
    operator of torch; None for any other. The error has them as attributes, too: `error.min_limit`.

    Threads: on another than the error's, only if it was asked for on the error's own, or left a `with` of this library.
    """
    from ._library import library

    known = error.__dict__.get("_refrain_numbers")
    if known is None and isinstance(error, torch.OutOfMemoryError):
        found = _Numbers()
        text = str(error).encode(errors="replace")
        if library.find_refusal(text, ctypes.byref(found), ctypes.sizeof(found)):
            known = error.__dict__["_refrain_numbers"] = found.values()
    return known if isinstance(known, OutOfMemoryNumbers) else None


def keep_numbers(exception: Iterable[object]) -> None:
    """Gives the error that leaves a `with` block its numbers while this thread has them: it may be read on another."""
    for error in exception:
        if isinstance(error, torch.OutOfMemoryError):
            out_of_memory_numbers(error)


class OutOfMemoryField:
    """An attribute of `torch.OutOfMemoryError`: the number of that name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, error: BaseException | None, owner: type) -> object:
        if error is None:
            return self
        numbers = out_of_memory_numbers(error)
        if numbers is None:
            raise AttributeError(
                f"{owner.__name__} has no {self._name!r}: no limit of refrain raised it on this thread"
            )
        return getattr(numbers, self._name)


def raise_last(library: Library) -> NoReturn:
    """Raises what the last failed call on this thread left."""
    code = library.last_code()
    error = _KINDS.get(code, RuntimeError)(library.last_message().decode(errors="replace"))
    if code == OUT_OF_MEMORY:
        numbers = _Numbers()
        library.last_out_of_memory(ctypes.byref(numbers), ctypes.sizeof(numbers))
        error.__dict__["_refrain_numbers"] = numbers.values()
    raise error


def as_checkpoint_error(error: RuntimeError) -> CheckpointError | None:
    """The `CheckpointError` that torch handed on as a plain RuntimeError, or None."""
    if type(error) is not RuntimeError or "[refrain::checkpoint]" not in str(error):
        return None
    return CheckpointError(str(error))
