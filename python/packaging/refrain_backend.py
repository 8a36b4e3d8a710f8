"""Builds the wheel (PEP 517, 660): the package and the library that `make build` left in build/lib. It compiles nothing and needs no other package.

A wheel has a folder for the torch that the library was built with: `refrain/lib/torch2.13/librefrain.so`. REFRAIN_LIBRARY names another library than build/lib's, and
REFRAIN_TORCH its torch.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import sysconfig
import zipfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

ROOT = Path(__file__).resolve().parent.parent.parent
VERSION = re.search(r'#define REFRAIN_VERSION "([^"]+)"', (ROOT / "include/refrain/version.h").read_text())[1]  # type: ignore[index]
METADATA = f"""Metadata-Version: 2.1
Name: refrain
Version: {VERSION}
Summary: Trains torch models in less memory: backward replays operators instead of keeping their results
License: Apache-2.0
Requires-Python: >=3.9
"""
Entry = Tuple[str, bytes]


def _library() -> Path:
    library = Path(os.environ.get("REFRAIN_LIBRARY", ROOT / "build/lib/librefrain.so"))
    if not library.exists():
        raise SystemExit(f"refrain: found no {library}, expected the library: run `make build` first")
    return library.resolve()


def _torch() -> str:
    """The minor version of the torch that build/ was configured with."""
    named = os.environ.get("REFRAIN_TORCH")
    if named is None:
        cache = (ROOT / "build/CMakeCache.txt").read_text()
        folder = re.search(r"^Torch_DIR:PATH=(.*)$", cache, re.MULTILINE)
        if folder is None:
            raise SystemExit("refrain: build/CMakeCache.txt names no Torch_DIR; set REFRAIN_TORCH, as 2.13")
        headers = Path(folder[1]).parents[2] / "include/torch/headeronly/version.h"
        if not headers.exists():
            headers = Path(folder[1]).parents[2] / "include/torch/csrc/api/include/torch/version.h"
        text = headers.read_text()
        named = ".".join(re.search(rf"TORCH_VERSION_{part} (\d+)", text)[1] for part in ("MAJOR", "MINOR"))  # type: ignore[index]
    return ".".join(named.split(".")[:2])


def _write(directory: str, entries: List[Entry], tag: str) -> str:
    info = f"refrain-{VERSION}.dist-info"
    entries = [
        *entries,
        (f"{info}/METADATA", METADATA.encode()),
        (f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: refrain_backend\nRoot-Is-Purelib: false\nTag: {tag}\n".encode()),
        (f"{info}/LICENSE", (ROOT / "LICENSE").read_bytes()),
    ]
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n" for name, data in entries
    )
    entries.append((f"{info}/RECORD", (record + f"{info}/RECORD,,\n").encode()))
    name = f"refrain-{VERSION}-{tag}.whl"
    with zipfile.ZipFile(Path(directory) / name, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, data in entries:
            entry = zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0))  # the same bytes from the same files
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            wheel.writestr(entry, data)
    return name


def build_wheel(wheel_directory: str, config_settings: Optional[Dict[str, Any]] = None, metadata_directory: Optional[str] = None) -> str:
    """The package with the library. Its platform is this machine's: for PyPI it would have to be built on an old one."""
    package = ROOT / "python/refrain"
    entries = [(f"refrain/{path.name}", path.read_bytes()) for path in sorted(package.iterdir()) if path.suffix in (".py", ".typed")]
    library = _library()
    entries.append((f"refrain/lib/torch{_torch()}/librefrain.so", library.read_bytes()))
    entries.append(("refrain/lib/librefrain_report.so", (library.parent / "librefrain_report.so").read_bytes()))
    return _write(wheel_directory, entries, "py3-none-" + re.sub(r"[-.]", "_", sysconfig.get_platform()))


def build_editable(wheel_directory: str, config_settings: Optional[Dict[str, Any]] = None, metadata_directory: Optional[str] = None) -> str:
    """A path to the sources, which find the library in build/lib."""
    return _write(wheel_directory, [("refrain.pth", f"{ROOT / 'python'}\n".encode())], "py3-none-any")


def build_sdist(sdist_directory: str, config_settings: Optional[Dict[str, Any]] = None) -> str:
    """There is none: the library is built by CMake."""
    raise NotImplementedError("refrain: no source distribution; build in a clone")
