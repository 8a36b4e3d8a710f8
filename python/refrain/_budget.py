"""Bytes and budgets as people write them."""

from __future__ import annotations

import ctypes
from typing import Union

from ._library import library

__all__ = ["Budget"]

#: Below it an int is more likely a fraction or a unit that was forgotten.
_LEAST_BYTES = 4096

Bytes = Union[int, str]


class _Budget(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_int32),
        ("unused", ctypes.c_int32),
        ("bytes", ctypes.c_int64),
        ("part", ctypes.c_double),
    ]


def parse_bytes(value: Bytes, what: str) -> int:
    """Reads bytes: "2GiB", "400 MB", or an int above 4096.

    Raises:
        ValueError: for text without a unit, and for an int up to 4096.
        TypeError: for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise TypeError(
            f"refrain: {what} is {value!r}, expected bytes: text such as '2GiB', or an int above {_LEAST_BYTES}"
        )
    if isinstance(value, int):
        if value <= _LEAST_BYTES:
            raise ValueError(
                f"refrain: {what} is {value}, expected bytes: an int above {_LEAST_BYTES}, or text such as "
                f"'{max(value, 1)}GiB'"
            )
        return value
    if value.strip().replace(".", "", 1).isdigit():
        raise ValueError(f"refrain: {what} is {value!r}, expected a unit, such as '{value.strip()}GiB'")
    found = ctypes.c_int64()
    library.check(library.parse_bytes(value.encode(), ctypes.byref(found)))
    return found.value


class Budget:
    """How much memory a training may use, and what is counted. Taken by `MemoryBudget`, `MemoryCap`, `MemoryLimit` and
    `plan_step`.

    Make one with `bytes`, `fraction`, `process` or `available`; `MemoryCap("2GiB")` and `MemoryBudget(0.5)` make it
    themselves.
    """

    def __init__(self, kind: int, bytes: int, part: float, text: str) -> None:
        self._value = _Budget(kind, 0, bytes, part)
        self._text = text

    def __repr__(self) -> str:
        return self._text

    @staticmethod
    def bytes(limit: Bytes) -> Budget:
        """Limits the bytes of tensors: absolute, as `memory_stats().current`."""
        return Budget(0, parse_bytes(limit, "limit"), 0.0, f"Budget.bytes({limit!r})")

    @staticmethod
    def fraction(part: float) -> Budget:
        """Limits the peak of a planned step: 0.0 is the lowest peak that a plan can reach, 1.0 that of the baseline.
        For `MemoryBudget` and `plan_step`.
        """
        part = float(part)
        if not 0.0 <= part <= 1.0:
            raise ValueError(
                f"refrain: a budget of {part} is out of range, expected a fraction from 0.0 to 1.0, or bytes such as "
                "'400MiB'"
            )
        return Budget(1, 0, part, f"Budget.fraction({part})")

    @staticmethod
    def process(limit: Bytes) -> Budget:
        """Limits the resident bytes of the process, everything included: what a container counts."""
        return Budget(2, parse_bytes(limit, "limit"), 0.0, f"Budget.process({limit!r})")

    @staticmethod
    def available(part: float) -> Budget:
        """Limits the process to what it has now and this part (above 0, at most 1) of what its control group and the
        system have free.
        """
        return Budget(3, 0, float(part), f"Budget.available({part})")

    @property
    def _pointer(self) -> ctypes._Pointer:  # type: ignore[type-arg]
        return ctypes.pointer(self._value)


def limit_of(limit: Bytes | Budget, what: str) -> Budget:
    """A limit in bytes. A float is refused: it says a fraction, which only a `MemoryBudget` can keep."""
    if isinstance(limit, Budget):
        return limit
    if isinstance(limit, float):
        raise ValueError(
            f"refrain: {what}({limit}) is no number of bytes; write {what}('2GiB'), or MemoryBudget({limit}) for a "
            "fraction of the peak"
        )
    return Budget.bytes(limit)


def budget_of(budget: float | Bytes | Budget) -> Budget:
    """A float is a fraction, text and an int above 4096 are bytes."""
    if isinstance(budget, Budget):
        return budget
    if isinstance(budget, float):
        return Budget.fraction(budget)
    if isinstance(budget, int) and not isinstance(budget, bool) and budget <= _LEAST_BYTES:
        raise ValueError(
            f"refrain: MemoryBudget({budget}) could be a fraction or bytes; write "
            f"MemoryBudget({float(budget) if 0 <= budget <= 1 else 0.5}) for a fraction "
            f"of the way from the lowest peak to the baseline's, or MemoryBudget('{max(budget, 1)}GiB') for bytes"
        )
    return Budget.bytes(budget)
