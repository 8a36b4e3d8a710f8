"""Which tensors autograd saves for backward, and why."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from typing import Any, Callable, Iterator

import torch

from ._library import library
from ._policies import DTYPES
from ._report import as_text

__all__ = ["SavedReport", "SavedTensor", "print_saved", "saved_tensors", "saved_text"]


@dataclass(frozen=True)
class SavedTensor:
    """A tensor that autograd saved, or one that a region holds for its replay alone."""

    op: str  #: that made it: "aten::mm"; outside regions autograd's "MmBackward0"; "" where unknown
    sizes: tuple[int, ...]  #: empty for a number
    dtype: torch.dtype | None  #: None where this binding does not know it
    bytes: int  #: of its whole storage: a small view keeps all of it
    region: int  #: number of the `checkpoint` call, in order of opening; -1: outside of all
    kept: bool  #: the graph keeps it resident until backward
    referenced_elsewhere: bool  #: resident also without the graph
    shared: bool  #: its bytes are counted in an earlier row
    reason: str  #: "kept by policy", "recomputed: 2 operators", "read from outside (parameter)", ...


@dataclass(frozen=True)
class SavedReport:
    """What `saved_tensors` found. `print` shows a table. The sums count each storage once and share nothing."""

    tensors: list[SavedTensor] = field(repr=False)
    kept_bytes: int  #: resident because of the graph only: what this forward costs until backward
    referenced_elsewhere_bytes: int  #: saved, but resident without the graph too
    recomputed_bytes: int  #: saved, not resident: recomputed or fetched in backward
    regions: int  #: `checkpoint` calls seen
    hints: list[str]  #: one line for each region that saves no memory, and what to do about it
    text: str = field(default="", repr=False)  #: the table

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return as_text(self.text)


@contextlib.contextmanager
def _observed() -> Iterator[int]:
    handle = library.made(library.saved_observer_open())
    try:
        yield handle
    finally:
        library.saved_observer_close(handle)


def saved_tensors(function: Callable[..., Any], *args: Any, **kwargs: Any) -> SavedReport:
    """Runs `function(*args, **kwargs)`, reports the tensors that autograd saved for backward, kept or recomputed, and
    releases the result.

    Not seen: what Python's `saved_tensors_hooks` packs, what other threads save.

    Raises:
        ValueError: inside of a region.

    Cost: the call, 0.5 us a saved tensor, and time in the square of a region's operators.
    """
    with _observed() as observer:
        result = function(*args, **kwargs)  # its graph is alive while the report is made
        found = json.loads(library.text(library.saved_observer_json(observer)))
        del result
    tensors = [
        SavedTensor(sizes=tuple(t.pop("sizes")), dtype=DTYPES.get(t.pop("scalar_type")), **t)
        for t in found.pop("tensors")
    ]
    return SavedReport(tensors, **found)


def saved_text(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """The table of `saved_tensors`."""
    return saved_tensors(function, *args, **kwargs).text


def print_saved(function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Prints `saved_tensors(function, ...)`, as JAX's `print_saved_residuals`."""
    print(saved_text(function, *args, **kwargs), end="")
