"""Selective checkpointing: what a region keeps for backward instead of recomputing it."""

from __future__ import annotations

import ctypes
import enum
import functools
from typing import Any, Callable, NamedTuple, Sequence, Union

import torch

from ._budget import Bytes, parse_bytes
from ._handles import Owned
from ._library import DecideFunction, library

__all__ = [
    "CheckpointPolicy", "Op", "Policy", "TensorInfo", "and_then", "checkpoint_name", "dots_saveable",
    "everything_saveable", "nothing_saveable", "offload_compute_intensive", "offload_larger_than",
    "offload_only_these_names", "offload_ops", "save_any_names_but_these", "save_compute_intensive",
    "save_every_second_matmul", "save_matmuls", "save_only_these_names", "save_ops", "save_random", "set_policy",
]  # fmt: skip


class CheckpointPolicy(enum.IntEnum):
    """What happens to the results of one operator."""

    MUST_SAVE = 0
    PREFER_SAVE = 1
    MUST_RECOMPUTE = 2
    PREFER_RECOMPUTE = 3
    OFFLOAD = 4


class TensorInfo(NamedTuple):
    """A tensor as a policy sees it."""

    sizes: tuple[int, ...]
    dtype: torch.dtype
    device: str


# c10::ScalarType and c10::DeviceType by number
DTYPES = {
    0: torch.uint8, 1: torch.int8, 2: torch.int16, 3: torch.int32, 4: torch.int64, 5: torch.float16, 6: torch.float32,
    7: torch.float64, 8: torch.complex32, 9: torch.complex64, 10: torch.complex128, 11: torch.bool, 12: torch.qint8,
    13: torch.quint8, 14: torch.qint32, 15: torch.bfloat16, 23: torch.float8_e5m2, 24: torch.float8_e4m3fn,
    25: torch.float8_e5m2fnuz, 26: torch.float8_e4m3fnuz, 27: torch.uint16, 28: torch.uint32, 29: torch.uint64,
}  # fmt: skip
_DEVICES = {0: "cpu", 1: "cuda"}


class Op:
    """An operator call of a region, after it has run. Valid only while the policy is asked."""

    __slots__ = ("_op",)

    def __init__(self, op: int) -> None:
        self._op = op

    @property
    def name(self) -> str:
        """Such as "aten::mm"."""
        return str(library.op_name(self._op).decode())

    @property
    def overload(self) -> str:
        """Such as "Tensor"; "" for the only or default one."""
        return str(library.op_overload(self._op).decode())

    @property
    def scope(self) -> str:
        """The path of open module scopes, or ""."""
        return str(library.op_scope(self._op).decode())

    @property
    def checkpoint_name(self) -> str:
        """The name that `checkpoint_name` gave; "" while the operator itself is judged."""
        return str(library.op_checkpoint_name(self._op).decode())

    @property
    def random(self) -> bool:
        """Whether it draws from a generator."""
        return bool(library.op_is_random(self._op))

    @property
    def position(self) -> int:
        """How many operators of this region the policy was asked about before."""
        return int(library.op_position(self._op))

    @property
    def output_bytes(self) -> int:
        """Bytes of all results together."""
        return int(library.op_output_bytes(self._op))

    @property
    def inputs(self) -> list[TensorInfo]:
        """The tensors among the arguments."""
        return self._tensors(0)

    @property
    def outputs(self) -> list[TensorInfo]:
        """The tensors among the results."""
        return self._tensors(1)

    def count(self, key: str) -> int:
        """How often this region has asked for `key` before: 0, 1, 2, ..."""
        return int(library.op_count(self._op, key.encode()))

    def _tensors(self, of: int) -> list[TensorInfo]:
        sizes, dimensions = ctypes.POINTER(ctypes.c_int64)(), ctypes.c_size_t()
        dtype, device = ctypes.c_int32(), ctypes.c_int32()
        found = []
        for index in range(library.op_tensors(self._op, of)):
            library.op_tensor(self._op, of, index, *map(ctypes.byref, (sizes, dimensions, dtype, device)))
            kind = DTYPES.get(dtype.value)
            if kind is None:
                raise NotImplementedError(
                    f"refrain: a policy was asked about a tensor of c10::ScalarType {dtype.value}, which Python's "
                    "binding does not know"
                )
            found.append(
                TensorInfo(tuple(sizes[: dimensions.value]), kind, _DEVICES.get(device.value, str(device.value)))
            )
        return found


class Policy(Owned):
    """A policy of the library. The functions of this module make one; a plain callable serves wherever one is taken."""

    _close = "policy_close"
    #: where the options of a region with this policy are; 0 before the first
    _options = 0
    _options_kept: Any = None

    def __init__(self, handle: int | None) -> None:
        self._handle = library.made(handle)


class CallablePolicy(Policy):
    """Asks a Python callable. What it raises is kept for the caller of the region."""

    def __init__(self, decide: Callable[[Op], int | bool]) -> None:
        self.error: BaseException | None = None

        def call(_context: Any, op: int) -> int:
            try:
                return int(decide(Op(op)))
            except BaseException as error:
                self.error = error
                return -1

        self._thunk = DecideFunction(call)  # lives as long as the handle: what runs it holds this object
        super().__init__(library.policy_callback(self._thunk, None, None))


AnyPolicy = Union[Policy, Callable[[Op], "int | bool"]]


def policy_of(policy: AnyPolicy) -> Policy:
    """The policy itself, or one that asks the callable."""
    if isinstance(policy, Policy):
        return policy
    if not callable(policy):
        raise TypeError(
            f"refrain: policy is {policy!r}, expected one such as save_matmuls(), or a callable that takes an Op and "
            "returns a CheckpointPolicy"
        )
    return CallablePolicy(policy)


def _names_of(kind: str, ops: Sequence[str | torch._ops.OpOverload]) -> list[str]:
    if isinstance(ops, str):
        raise TypeError(f"refrain.{kind}: found the text {ops!r}, expected a list of operators")
    return [op if isinstance(op, str) else _name_of(op) for op in ops]


def _of_names(kind: str, names: Sequence[str]) -> Policy:
    array = (ctypes.c_char_p * len(names))(*[name.encode() for name in names])
    return Policy(library.policy_of_names(kind.encode(), array, len(names)))


def save_ops(ops: Sequence[str | torch._ops.OpOverload]) -> Policy:
    """Saves the results of these operators: "aten::mm", "aten::add.Tensor" or `torch.ops.aten.mm.default`.

    Raises:
        ValueError: for a name that torch does not know now, with the nearest ones.
    """
    return _of_names("save_ops", _names_of("save_ops", ops))


def offload_ops(ops: Sequence[str | torch._ops.OpOverload]) -> Policy:
    """Stores the results of these operators in the region's store; names as for `save_ops`."""
    return _of_names("offload_ops", _names_of("offload_ops", ops))


def save_only_these_names(*names: str) -> Policy:
    """Saves the values that `checkpoint_name` gave one of these names."""
    return _of_names("save_only_these_names", names)


def save_any_names_but_these(*names: str) -> Policy:
    """Saves the values that `checkpoint_name` gave a name that is none of these."""
    return _of_names("save_any_names_but_these", names)


def offload_only_these_names(*names: str) -> Policy:
    """Offloads the values that `checkpoint_name` gave one of these names."""
    return _of_names("offload_only_these_names", names)


def save_matmuls() -> Policy:
    """Saves matrix products: mm, addmm, bmm, baddbmm, addbmm, addmv, mv, dot, _scaled_mm, linear."""
    return Policy(library.policy_named(b"save_matmuls"))


def save_compute_intensive() -> Policy:
    """Saves matrix products, convolutions, attention and upsample_bilinear2d: what torch.compile's partitioner calls
    compute intensive.
    """
    return Policy(library.policy_named(b"save_compute_intensive"))


def save_random() -> Policy:
    """Saves the results of random operators, so that nothing is drawn a second time."""
    return Policy(library.policy_named(b"save_random"))


def save_every_second_matmul() -> Policy:
    """Saves every second matrix product of a region, from its first."""
    return Policy(library.policy_named(b"save_every_second_matmul"))


def dots_saveable() -> Policy:
    """Saves matrix products, by the name in JAX."""
    return Policy(library.policy_named(b"dots_saveable"))


def nothing_saveable() -> Policy:
    """Saves nothing: the default."""
    return Policy(library.policy_named(b"nothing_saveable"))


def everything_saveable() -> Policy:
    """Saves the results of all operators."""
    return Policy(library.policy_named(b"everything_saveable"))


def offload_compute_intensive() -> Policy:
    """Offloads what `save_compute_intensive` saves; the rest is recomputed."""
    return Policy(library.policy_named(b"offload_compute_intensive"))


def offload_larger_than(size: Bytes) -> Policy:
    """Offloads the results of operators whose results together have at least so many bytes."""
    return Policy(library.policy_offload_larger_than(size if isinstance(size, int) else parse_bytes(size, "size")))


def and_then(first: Policy, second: Policy) -> Policy:
    """Asks `first`, and where that answers PREFER_RECOMPUTE, `second`. Both are policies of the library, not
    callables.
    """
    return Policy(library.policy_and_then(first._handle, second._handle))


def checkpoint_name(x: torch.Tensor, name: str) -> torch.Tensor:
    """Names `x`, which the open region computed, for its policy. Returns `x`."""
    library.check(library.checkpoint_name(x._cdata, name.encode()))
    return x


def set_policy(x: torch.Tensor, policy: CheckpointPolicy) -> torch.Tensor:
    """Decides for `x`, which the open region computed, without asking its policy. Returns `x`."""
    library.check(library.set_policy(x._cdata, int(policy)))
    return x


# ---- torch's own selective checkpointing


def _name_of(op: torch._ops.OpOverload) -> str:
    namespace, name, overload = str(op).split(".")
    return f"{namespace}::{name}" + ("" if overload == "default" else f".{overload}")


@functools.lru_cache(maxsize=None)
def _overload_of(name: str, overload: str) -> torch._ops.OpOverload:
    namespace, op = name.split("::")
    return getattr(getattr(getattr(torch.ops, namespace), op), overload or "default")  # type: ignore[no-any-return]


def torch_policy(context_fn: Callable[[], Any]) -> Policy | None:
    """The policy in what `create_selective_checkpoint_contexts` makes.

    Its function is called with meta tensors for the tensors among the arguments, and without the other arguments.

    Raises:
        ValueError: for another `context_fn`: no function is called again, so its second context would never be entered.
    """
    from torch.utils import checkpoint as theirs

    if context_fn is theirs.noop_context_fn:
        return None
    forward, _ = context_fn()
    decide = getattr(forward, "policy_fn", None)
    if decide is None:
        raise ValueError(
            "refrain.checkpoint: context_fn is not create_selective_checkpoint_contexts; the function is never called "
            "again, so the second context would never be entered. Enter the first one inside of the function."
        )
    answers = {
        theirs.CheckpointPolicy.MUST_SAVE: CheckpointPolicy.MUST_SAVE,
        theirs.CheckpointPolicy.PREFER_SAVE: CheckpointPolicy.PREFER_SAVE,
        theirs.CheckpointPolicy.MUST_RECOMPUTE: CheckpointPolicy.MUST_RECOMPUTE,
        theirs.CheckpointPolicy.PREFER_RECOMPUTE: CheckpointPolicy.PREFER_RECOMPUTE,
    }
    context = theirs.SelectiveCheckpointContext(is_recompute=False)

    def policy(op: Op) -> int:
        with torch._C._DisableTorchDispatch():
            inputs = [torch.empty(tensor.sizes, dtype=tensor.dtype, device="meta") for tensor in op.inputs]
        answer = decide(context, _overload_of(op.name, op.overload), *inputs)
        if isinstance(answer, bool):
            return CheckpointPolicy.MUST_SAVE if answer else CheckpointPolicy.PREFER_RECOMPUTE
        return answers[answer]

    return CallablePolicy(policy)
