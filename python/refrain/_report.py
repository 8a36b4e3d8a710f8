"""Pictures of results: the page that the tool draws, by the same code, `librefrain_report.so`, which needs no torch."""

from __future__ import annotations

import ctypes
import functools
import html as _html
import json
import os
import platform
import stat
import tempfile
from pathlib import Path
from typing import Any, Sequence

import torch

from ._library import library

__all__ = ["Document", "machine", "page", "write_atomically"]


@functools.lru_cache(maxsize=1)
def _drawing() -> ctypes.CDLL:
    beside = library.path.resolve().parent
    candidates = [beside / "librefrain_report.so", beside.parent / "librefrain_report.so"]
    path = next((candidate for candidate in candidates if candidate.exists()), None)
    if path is None:
        raise ImportError(
            "refrain: found no librefrain_report.so, which draws reports; looked for "
            f"{', '.join(map(str, candidates))}. Run `make build` again."
        )
    drawing = ctypes.CDLL(str(path))
    drawing.refrain_report_html.restype = ctypes.c_void_p
    drawing.refrain_report_html.argtypes = [
        ctypes.POINTER(ctypes.c_char_p),
        ctypes.c_size_t,
        ctypes.POINTER(ctypes.c_void_p),
    ]
    drawing.refrain_report_free.restype, drawing.refrain_report_free.argtypes = None, [ctypes.c_void_p]
    return drawing


def page(documents: Sequence[dict[str, Any]]) -> str:
    """One HTML page with a section for each document, as `refrain report` draws it.

    Raises:
        ValueError: if a document is not as docs/design/report.md has it.
    """
    drawing = _drawing()
    texts = (ctypes.c_char_p * len(documents))(*[json.dumps(document).encode() for document in documents])
    error = ctypes.c_void_p()
    made = drawing.refrain_report_html(texts, len(documents), ctypes.byref(error))
    found = ctypes.string_at(made or error.value or b"no memory for the page").decode(errors="replace")
    drawing.refrain_report_free(made)
    drawing.refrain_report_free(error)
    if not made:
        raise ValueError(found)
    return found


def machine() -> dict[str, Any]:
    """What a document says of where it was measured."""
    processor = platform.processor() or platform.machine()
    try:
        named = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        processor = named[0].split(":", 1)[1].strip() if named else processor
    except OSError:
        pass  # not Linux
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "libtorch": torch.__version__,
        "refrain": library.version,
    }


def write_atomically(path: str | os.PathLike[str], content: str) -> None:
    """Makes `content` the whole content of a file: whoever opens it, now or after a crash, sees the old content or the
    new one.

    Raises:
        OSError: if the system refuses; the file is as it was.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise OSError(f"refrain: {path} is no regular file, expected the name of a file")
    try:
        mode = stat.S_IMODE(target.stat().st_mode)
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        mode = 0o666 & ~mask
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


class Document:
    """A result that is a document of docs/design/report.md: drawn in notebooks, and written as a page or as JSON."""

    def document(self) -> dict[str, Any]:
        """The result as the tool's `--json` has it."""
        raise NotImplementedError

    def html(self) -> str:
        """The page that the tool's `--html` writes: one file, no network."""
        return page([self.document()])

    def write_html(self, path: str | os.PathLike[str]) -> None:
        """Writes `html()` to a file, atomically: the old content stays if it fails.

        Raises:
            OSError: if the system refuses.
        """
        write_atomically(path, self.html())

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Writes `document()` to a file, atomically, for `refrain report`."""
        write_atomically(path, json.dumps(self.document(), indent=2) + "\n")

    def _repr_html_(self) -> str:
        # of its own document, so that neither style sheet reaches the other
        style = "width: 100%; height: 900px; border: 0"
        return f'<iframe srcdoc="{_html.escape(self.html())}" style="{style}" title="refrain"></iframe>'


def as_text(text: str) -> str:
    """Text for a notebook."""
    return f"<pre>{_html.escape(text)}</pre>"
