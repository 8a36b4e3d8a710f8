"""Offload: forward copies what backward needs to a store and frees it, and backward fetches it; nothing is recomputed."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from ._budget import Bytes, parse_bytes
from ._library import library

__all__ = ["OffloadScope", "OffloadStats", "OffloadStore"]

_COUNTS = (
    "values", "value_bytes", "refused", "refused_bytes", "written_bytes", "read_bytes", "fetches", "prefetched", "store_stalls", "store_stall_ms",
    "fetch_stalls", "fetch_stall_ms", "in_flight_bytes", "stored_bytes", "file_bytes",
)  # fmt: skip


class _Options(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in ("to", "compress", "has_compress", "strict", "pin_memory", "unused")] + [
        (name, ctypes.c_int64) for name in ("prefetch", "min_bytes", "max_in_flight", "capacity")
    ] + [("directory", ctypes.c_char_p)]


class _Stats(ctypes.Structure):
    _fields_ = [(name, ctypes.c_double if name.endswith("_ms") else ctypes.c_int64) for name in _COUNTS]


@dataclass(frozen=True)
class OffloadStats:
    """What an `OffloadStore` did; the last three byte counts are the state now. Times in milliseconds."""

    values: int
    value_bytes: int
    refused: int
    refused_bytes: int
    written_bytes: int
    read_bytes: int
    fetches: int
    prefetched: int
    store_stalls: int
    store_stall_ms: float
    fetch_stalls: int
    fetch_stall_ms: float
    in_flight_bytes: int
    stored_bytes: int
    file_bytes: int
    problem: str


def _bytes_or_default(value: Bytes | None, name: str) -> int:
    if value is None:
        return -1
    return value if isinstance(value, int) else parse_bytes(value, name)


class OffloadStore:
    """A place for bytes, for `checkpoint(policy=offload_..., store=...)` and `OffloadScope`.

    Args:
        to: "host", for bytes of a device (those in host memory stay where they are), or "disk", a scratch file.
        directory: folder of the scratch file. Default: the system's for temporary files.
        prefetch, min_bytes, max_in_flight, capacity: bytes; see refrain/offload.h. Defaults: 32 MiB, 64 KiB, 64 MiB, the disk's.
        compress: level of zstd, for "disk". Default: none.
        strict: a value that finds no room is an `OffloadError` instead of kept in memory.

    Raises:
        ValueError: for a folder in which no file can be made, or a number out of range.
    """

    def __init__(
        self,
        to: str = "host",
        *,
        directory: str | None = None,
        prefetch: Bytes | None = None,
        min_bytes: Bytes | None = None,
        max_in_flight: Bytes | None = None,
        capacity: Bytes | None = None,
        compress: int | None = None,
        strict: bool = False,
        pin_memory: bool = True,
    ) -> None:
        if to not in ("host", "disk"):
            raise ValueError(f"refrain.OffloadStore: to is {to!r}, expected 'host' or 'disk'")
        options = _Options(
            int(to == "disk"), compress or 0, int(compress is not None), int(strict), int(pin_memory), 0,
            _bytes_or_default(prefetch, "prefetch"), _bytes_or_default(min_bytes, "min_bytes"),
            _bytes_or_default(max_in_flight, "max_in_flight"), _bytes_or_default(capacity, "capacity"), None if directory is None else directory.encode(),
        )  # fmt: skip
        self._handle = library.made(library.offload_store_open(ctypes.byref(options)))

    def __del__(self) -> None:
        handle, self._handle = getattr(self, "_handle", 0), 0
        if handle and library is not None:
            library.offload_store_close(handle)

    def flush(self) -> None:
        """Waits until nothing is in flight."""
        library.check(library.offload_store_flush(self._handle))

    def stats(self) -> OffloadStats:
        """What it did so far."""
        found, problem = _Stats(), ctypes.c_void_p()
        library.check(library.offload_store_stats(self._handle, ctypes.byref(found), ctypes.sizeof(found), ctypes.byref(problem)))
        return OffloadStats(**{name: getattr(found, name) for name in _COUNTS}, problem=library.text(problem.value))


class OffloadScope:
    """A `with` block in which what autograd saves outside of regions goes to a store, and is fetched when backward reads it.

    The counterpart of `torch.autograd.graph.save_on_cpu`. Parameters and their views are never stored.
    """

    def __init__(self, store: OffloadStore) -> None:
        self._store = store
        self._scope = 0

    def __enter__(self) -> OffloadScope:
        self._scope = library.made(library.offload_scope_open(self._store._handle))
        return self

    def __exit__(self, *exception: Any) -> None:
        scope, self._scope = self._scope, 0
        library.offload_scope_close(scope)
