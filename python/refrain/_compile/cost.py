"""What operators of a compiled step cost: torch's own kernels are run once, on this machine, for their time and
workspace; generated ones are reckoned from bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator

import torch
from torch import fx
from torch.utils import _pytree as pytree

from .._memory import MemoryScope
from .._report import write_atomically
from .graph import JointGraph, JointOp, aten, packet_of
from .inductor import part, partitioners

#: Of a kernel, beside what it moves.
_KERNEL_NS = 1000
#: An element of an exp, erf, tanh.
_HEAVY_NS = 0.4
_HEAVY = {aten.exp, aten.erf, aten.sigmoid, aten.tanh, aten.log, aten.gelu, aten.silu, aten.gelu_backward, aten.pow}
#: Longest time that is spent on an operator, beyond its first run.
_MOST_S = 0.02


def cache_folder() -> Path:
    """Where measurements are kept: `REFRAIN_CACHE_DIR`, else the user's cache directory."""
    named = os.environ.get("REFRAIN_CACHE_DIR")
    if named:
        return Path(named) / "compile"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "refrain" / "compile"


def write_text(path: Path, text: str) -> None:
    """Writes a file of the cache, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)


def _hint(size: Any) -> int:
    return int(size) if isinstance(size, int) else int(size.node.hint)


@contextlib.contextmanager
def _real_tensors() -> Iterator[None]:
    """Operators run although a graph is being compiled; drawn numbers are given back."""
    state = torch.get_rng_state()
    with part("torch.utils._mode_utils", "no_dispatch")(), torch.no_grad():
        try:
            yield
        finally:
            torch.set_rng_state(state)


@dataclass(frozen=True)
class _Spec:
    """A tensor to measure with."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def make(self) -> torch.Tensor:
        """Of numbers that no kernel minds."""
        made = torch.empty_strided(self.shape, self.stride, dtype=self.dtype)
        return made.normal_(0.0, 0.1) if made.is_floating_point() else made.zero_()


def _spec(value: Any) -> Any:
    if isinstance(value, torch.SymInt):
        return _hint(value)
    if not isinstance(value, torch.Tensor):
        return value
    return _Spec(value.dtype, tuple(map(_hint, value.shape)), tuple(map(_hint, value.stride())))


def _channels_last(value: Any) -> Any:
    """As inductor lays out what convolutions read, where it prefers channels last."""
    if not isinstance(value, _Spec) or len(value.shape) not in (4, 5):
        return value
    strides, step = [0] * len(value.shape), 1
    for axis in [1, *range(len(value.shape) - 1, 1, -1), 0]:
        strides[axis] = step
        step *= max(1, value.shape[axis])
    return _Spec(value.dtype, value.shape, tuple(strides))


def _specs_of(node: fx.Node, channels_last: bool) -> Any:
    """Its arguments, tensors as specs; None: an argument is none that can be made up."""
    values = pytree.tree_map(lambda a: a.meta.get("val") if isinstance(a, fx.Node) else a, (node.args, node.kwargs))
    tensors = [value for value in pytree.tree_leaves(values) if isinstance(value, torch.Tensor)]
    is_plain = all(value.device.type == "cpu" and type(value).__name__ in ("FakeTensor", "Tensor") for value in tensors)
    if not tensors or not is_plain:
        return None
    args, kwargs = pytree.tree_map(_spec, values)
    activations = {aten.convolution: 1, aten.convolution_backward: 2}.get(packet_of(node), 0) if channels_last else 0
    return tuple(_channels_last(a) if k < activations else a for k, a in enumerate(args)), kwargs


class Costs:
    """Times and workspaces of this machine with this many threads. Measured once, kept on disk; what cannot be written
    is kept for the process."""

    def __init__(self) -> None:
        self.threads = torch.get_num_threads()
        name = f"{platform.machine()}-{os.cpu_count()}-{self.threads}-{torch.__version__}"
        self._path = cache_folder() / f"costs-{hashlib.sha256(name.encode()).hexdigest()[:12]}.json"
        self._known: dict[str, list[float]] = {}
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(self._path.read_text())
            self._known = {key: value for key, value in found.items() if isinstance(value, list) and len(value) == 2}
        self._is_new = False
        self.measuring_s = 0.0
        self.bytes_per_ns, self.flops_per_ns = self._rates()

    def _rates(self) -> tuple[float, float]:
        if "bandwidth" not in self._known:
            start = time.perf_counter()
            with _real_tensors():
                a, b = torch.ones(1 << 21), torch.ones(1 << 21)
                moved = 3 * 4 * (1 << 21) / _time_of(lambda: torch.add(a, b))
                m = torch.ones(384, 384)
                flops = 2 * 384**3 / _time_of(lambda: torch.mm(m, m))
            self._known["bandwidth"], self._known["flops"] = [moved, 0.0], [flops, 0.0]
            self._is_new = True
            self.measuring_s += time.perf_counter() - start
        return max(self._known["bandwidth"][0], 0.1), max(self._known["flops"][0], 0.1)

    def digest(self) -> str:
        """Of what plans depend on, to two digits."""
        return f"{self.threads}/{self.bytes_per_ns:.1e}/{self.flops_per_ns:.1e}"

    def save(self) -> None:
        if not self._is_new:
            return
        with contextlib.suppress(OSError):
            write_text(self._path, json.dumps(self._known))
        self._is_new = False

    # ---- Of an operator

    def of(self, joint: JointGraph, op: JointOp) -> tuple[int, int]:
        """Nanoseconds of a run, bytes of workspace."""
        if joint.is_extern(op.node) and not op.is_random:
            measured = self._measured(joint, op.node)
            if measured is not None:
                return max(1, int(measured[0])), int(measured[1])
        return self._reckoned(joint, op), 0

    def _reckoned(self, joint: JointGraph, op: JointOp) -> int:
        size = partitioners()._size_of
        moved = sum(size(value) for value, _ in [*op.values, *op.reads])
        heavy = sum(
            node.meta["val"].numel()
            for node in [op.node, *joint.inlined_in(op.node, op.phase)]
            if packet_of(node) in _HEAVY and hasattr(node.meta.get("val"), "numel")
        )
        return (
            int(
                moved / self.bytes_per_ns
                + _flops_of(op.node) / self.flops_per_ns
                + _HEAVY_NS * _hint(heavy) / self.threads
            )
            + _KERNEL_NS
        )

    def _measured(self, joint: JointGraph, node: fx.Node) -> list[float] | None:
        if not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace != "aten":
            return None
        specs = _specs_of(node, joint.cut.channels_last)
        if specs is None:
            return None
        key = f"{node.target}{specs}"
        if key not in self._known:
            start = time.perf_counter()
            found = _measure(node.target, specs)
            self.measuring_s += time.perf_counter() - start
            self._known[key] = found
            self._is_new = True
        found = self._known[key]
        return found if found[0] > 0 else None


def _time_of(call: Callable[[], Any]) -> float:
    """Shortest of a few runs, in nanoseconds."""
    call()
    best, until = float("inf"), time.perf_counter() + _MOST_S
    for _ in range(5):
        start = time.perf_counter()
        call()
        end = time.perf_counter()
        best = min(best, end - start)
        if end > until:
            break
    return best * 1e9


def _measure(target: Any, specs: Any) -> list[float]:
    """Runs an operator. [0, 0]: it cannot be run on made-up numbers."""
    try:
        with _real_tensors():
            args, kwargs = pytree.tree_map(lambda a: a.make() if isinstance(a, _Spec) else a, specs)
            ns = _time_of(lambda: target(*args, **kwargs))
            with MemoryScope() as memory:
                result = target(*args, **kwargs)
            made = sum(
                value.untyped_storage().nbytes()
                for value in pytree.tree_leaves(result)
                if isinstance(value, torch.Tensor)
            )
            return [ns, max(0, memory.peak - made)]
    except Exception:  # whatever an operator has against made-up numbers: it is reckoned
        return [0.0, 0.0]


def _flops_of(node: fx.Node) -> float:
    from torch.utils.flop_counter import flop_registry

    count = flop_registry.get(packet_of(node))
    if count is None:
        return 0.0
    args, kwargs = pytree.tree_map(lambda a: a.meta["val"] if isinstance(a, fx.Node) else a, (node.args, node.kwargs))
    try:
        return float(_hint(count(*args, **kwargs, out_val=node.meta["val"])))
    except (TypeError, ValueError, KeyError, IndexError, AssertionError):
        return 0.0


_costs: dict[int, Costs] = {}


def costs() -> Costs:
    """Of this process, for the threads that torch has now."""
    threads = torch.get_num_threads()
    if threads not in _costs:
        _costs[threads] = Costs()
    return _costs[threads]
