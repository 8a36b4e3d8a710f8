"""Exceptions of the library, as Python's own kinds."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, NoReturn

import torch

if TYPE_CHECKING:
    from ._library import Library

__all__ = ["CheckpointError", "FormatError", "InternalError", "OffloadError", "UnsupportedError"]


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


class OutOfMemoryNumbers(ctypes.Structure):
    _fields_ = [("reason", ctypes.c_int32), ("unused", ctypes.c_int32)] + [
        (name, ctypes.c_int64) for name in ("requested", "in_use", "limit", "min_limit")
    ]


def raise_last(library: Library) -> NoReturn:
    """Raises what the last failed call on this thread left. An out-of-memory error has `requested`, `in_use`, `limit` and `min_limit`, in bytes."""
    code = library.last_code()
    error = _KINDS.get(code, RuntimeError)(library.last_message().decode(errors="replace"))
    if code == OUT_OF_MEMORY:
        numbers = OutOfMemoryNumbers()
        library.last_out_of_memory(ctypes.byref(numbers), ctypes.sizeof(numbers))
        for name in ("requested", "in_use", "limit", "min_limit"):
            setattr(error, name, getattr(numbers, name))
    raise error


def as_checkpoint_error(error: RuntimeError) -> CheckpointError | None:
    """The `CheckpointError` that torch handed on as a plain RuntimeError, or None."""
    if type(error) is not RuntimeError or "[refrain::checkpoint]" not in str(error):
        return None
    return CheckpointError(str(error))
