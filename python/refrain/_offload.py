"""Offload: forward copies what backward needs to a store and frees it, and backward fetches it: nothing recomputed."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from ._budget import Bytes, parse_bytes
from ._handles import Owned, Scope, read, struct_of
from ._library import library

__all__ = ["OffloadScope", "OffloadStats", "OffloadStore"]


class _Options(ctypes.Structure):
    _fields_ = (
        [(name, ctypes.c_int32) for name in ("to", "compress", "has_compress", "strict", "pin_memory", "unused")]
        + [(name, ctypes.c_int64) for name in ("prefetch", "min_bytes", "max_in_flight", "capacity")]
        + [("directory", ctypes.c_char_p)]
    )


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


_STATS = struct_of(OffloadStats, {"problem"})


def _bytes_or_default(value: Bytes | None, name: str) -> int:
    if value is None:
        return -1
    return value if isinstance(value, int) else parse_bytes(value, name)


class OffloadStore(Owned):
    """A place for bytes, for `checkpoint(policy=offload_..., store=...)` and `OffloadScope`.

    Args:
        to: "host", for bytes of a device (those in host memory stay where they are), or "disk", a scratch file.
        directory: folder of the scratch file. Default: the system's for temporary files.
        prefetch, min_bytes, max_in_flight, capacity: bytes; see refrain/offload.h. Defaults: 32 MiB, 64 KiB, 64 MiB,
            the disk's.
        compress: level of zstd, for "disk". Default: none.
        strict: a value that finds no room is an `OffloadError` instead of kept in memory.

    Raises:
        ValueError: for a folder in which no file can be made, or a number out of range.
    """

    _close = "offload_store_close"

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
            _bytes_or_default(max_in_flight, "max_in_flight"), _bytes_or_default(capacity, "capacity"), None if
            directory is None else directory.encode(),
        )  # fmt: skip
        self._handle = library.made(library.offload_store_open(ctypes.byref(options)))

    def flush(self) -> None:
        """Waits until nothing is in flight."""
        library.check(library.offload_store_flush(self._handle))

    def stats(self) -> OffloadStats:
        """What it did so far."""
        return read(OffloadStats, _STATS, library.offload_store_stats, self._handle, text="problem")


class OffloadScope(Scope):
    """A `with` block in which what autograd saves outside of regions goes to a store, and is fetched when backward
    reads it.

    The counterpart of `torch.autograd.graph.save_on_cpu`. Parameters and their views are never stored.
    """

    _close = "offload_scope_close"

    def __init__(self, store: OffloadStore) -> None:
        self._store = store

    def _open(self) -> int | None:
        handle: int | None = library.offload_scope_open(self._store._handle)
        return handle
