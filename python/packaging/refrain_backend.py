"""Builds the wheel (PEP 517, 660): the package and the libraries that CMake built. It compiles nothing and needs no
other package.

A wheel has a folder for each torch that it has a library for: `refrain/lib/torch2.13/librefrain.so`. REFRAIN_BUILDS
names the build folders, with `:` between them, of which the first also has librefrain_report.so; default: `build`. Or
REFRAIN_LIBRARY names a library, and REFRAIN_TORCH its torch. `scripts/wheel` makes builds for other versions.
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
_HEADER = (ROOT / "include/refrain/version.h").read_text()
VERSION = re.search(r'#define REFRAIN_VERSION "([^"]+)"', _HEADER)[1]  # type: ignore[index]
METADATA = f"""Metadata-Version: 2.1
Name: refrain
Version: {VERSION}
Summary: Trains torch models in less memory: backward replays operators instead of keeping their results
License: Apache-2.0
Requires-Python: >=3.9
"""
Entry = Tuple[str, bytes]


def _library(build: Path) -> Path:
    library = build / "lib/librefrain.so"
    if not library.exists():
        raise SystemExit(f"refrain: found no {library}, expected the library: run `make build` first")
    return library.resolve()


def _torch(build: Path) -> str:
    """The minor version of the torch that a build folder was configured with."""
    cache = (build / "CMakeCache.txt").read_text()
    root = re.search(r"^REFRAIN_LIBTORCH:INTERNAL=(.+)$", cache, re.MULTILINE)
    folder = re.search(r"^Torch_DIR:PATH=(.+)$", cache, re.MULTILINE)
    if root is None and folder is None:
        raise SystemExit(
            f"refrain: {build}/CMakeCache.txt names no torch; set REFRAIN_LIBRARY and REFRAIN_TORCH, as 2.13"
        )
    torch = Path(root[1]) if root else Path(folder[1]).parents[2]  # type: ignore[index]
    headers = [torch / "include/torch/headeronly/version.h", torch / "include/torch/csrc/api/include/torch/version.h"]
    text = next(header for header in headers if header.exists()).read_text()
    numbers = [re.search(rf"TORCH_VERSION_{part} (\d+)", text) for part in ("MAJOR", "MINOR")]
    return ".".join(number[1] for number in numbers)  # type: ignore[index]


def _libraries() -> List[Tuple[str, Path]]:
    """The library for each minor version of torch: one that is named, or those of build folders."""
    named = os.environ.get("REFRAIN_LIBRARY")
    if named is not None:
        version = os.environ.get("REFRAIN_TORCH") or _torch(ROOT / "build")
        return [(".".join(version.split(".")[:2]), Path(named).resolve())]
    builds = [ROOT / build for build in os.environ.get("REFRAIN_BUILDS", "build").split(os.pathsep)]
    found = [(_torch(build), _library(build)) for build in builds]
    versions = [version for version, _ in found]
    if len(set(versions)) < len(versions):
        raise SystemExit(f"refrain: found builds for torch {', '.join(versions)}, expected one for each minor version")
    return found


def _write(directory: str, entries: List[Entry], tag: str) -> str:
    info = f"refrain-{VERSION}.dist-info"
    entries = [
        *entries,
        (f"{info}/METADATA", METADATA.encode()),
        (
            f"{info}/WHEEL",
            f"Wheel-Version: 1.0\nGenerator: refrain_backend\nRoot-Is-Purelib: false\nTag: {tag}\n".encode(),
        ),
        (f"{info}/LICENSE", (ROOT / "LICENSE").read_bytes()),
    ]
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
        for name, data in entries
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


def build_wheel(
    wheel_directory: str, config_settings: Optional[Dict[str, Any]] = None, metadata_directory: Optional[str] = None
) -> str:
    """The package with the library. Its platform is this machine's: for PyPI it would have to be built on an old one.
    """
    package = ROOT / "python/refrain"
    sources = [path for path in sorted(package.rglob("*")) if path.suffix in (".py", ".typed")]
    entries = [(path.relative_to(package.parent).as_posix(), path.read_bytes()) for path in sources]
    libraries = _libraries()
    for torch, library in libraries:
        entries.append((f"refrain/lib/torch{torch}/librefrain.so", library.read_bytes()))
    # draws reports, and knows nothing of torch
    entries.append(("refrain/lib/librefrain_report.so", (libraries[0][1].parent / "librefrain_report.so").read_bytes()))
    return _write(wheel_directory, entries, "py3-none-" + re.sub(r"[-.]", "_", sysconfig.get_platform()))


def build_editable(
    wheel_directory: str, config_settings: Optional[Dict[str, Any]] = None, metadata_directory: Optional[str] = None
) -> str:
    """A path to the sources, which find the library in build/lib."""
    return _write(wheel_directory, [("refrain.pth", f"{ROOT / 'python'}\n".encode())], "py3-none-any")


def build_sdist(sdist_directory: str, config_settings: Optional[Dict[str, Any]] = None) -> str:
    """There is none: the library is built by CMake."""
    raise NotImplementedError("refrain: no source distribution; build in a clone")
