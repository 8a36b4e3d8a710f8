"""Regions: what runs inside keeps little for backward, which replays its operators."""

from __future__ import annotations

import ctypes
from typing import Any, Callable, Sequence, TypeVar

import torch

from ._errors import raise_last
from ._library import library
from ._offload import OffloadStore
from ._policies import AnyPolicy, CallablePolicy, Policy, policy_of, torch_policy
from ._torch_patches import run_uncompiled

__all__ = [
    "checkpoint", "checkpoint_sequential", "is_checkpointing", "is_recomputing", "region", "set_checkpointing_enabled",
]  # fmt: skip

_R = TypeVar("_R")
_open, _close, _close_failed = library.region_open, library.region_close, library.region_close_failed


class _Options(ctypes.Structure):
    _fields_ = [
        ("preserve_rng_state", ctypes.c_int32),
        ("offload_inputs", ctypes.c_int32),
        ("policy", ctypes.c_void_p),
        ("store", ctypes.c_void_p),
    ]


def _options(
    preserve_rng_state: bool, policy: Policy | None, store: OffloadStore | None
) -> ctypes._Pointer | int | None:  # type: ignore[type-arg]
    if preserve_rng_state and store is None:
        return None if policy is None else policy._options or _options_of(policy)
    return ctypes.pointer(
        _Options(int(preserve_rng_state), 0, policy._handle if policy else None, store._handle if store else None)
    )


def _options_of(policy: Policy) -> int:
    """Where the options of a region with this policy alone are, which live as long as it does."""
    policy._options_kept = _Options(1, 0, policy._handle, None)
    policy._options = ctypes.addressof(policy._options_kept)
    return policy._options


class region:
    """A `with` block whose operators are recorded; backward replays them instead of keeping their results.

        with refrain.region():
            h = block(x)

    As `checkpoint`, for code that is not a function. Opened and closed on one thread.

    Args:
        policy: what to keep rather than recompute, such as `save_matmuls()`, or a callable that takes an `Op`.
            Default: nothing.
        preserve_rng_state: replayed random operators draw the numbers that they drew in forward. Without it backward
            refuses to replay one.
        store: where a policy that answers OFFLOAD puts bytes.

    Raises:
        ValueError: under vmap, forward-mode AD, or inference mode with gradients switched on.
    """

    __slots__ = ("_handle", "_options", "_policy", "_store")

    def __init__(
        self, *, policy: AnyPolicy | None = None, preserve_rng_state: bool = True, store: OffloadStore | None = None
    ) -> None:
        self._policy = None if policy is None else policy_of(policy)
        self._store = store
        self._options = _options(preserve_rng_state, self._policy, store)
        self._handle = 0

    def __enter__(self) -> region:
        if self._handle:
            raise RuntimeError("refrain.region: it is open already; make one for each `with`")
        self._handle = library.made(_open(self._options))
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: Any) -> None:
        handle, self._handle = self._handle, 0
        (_close if kind is None else _close_failed)(handle)
        if isinstance(self._policy, CallablePolicy) and self._policy.error is not None:
            error, self._policy.error = self._policy.error, None
            raise error


def _checkpoint_with(
    function: Callable[..., _R],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    policy: AnyPolicy | None,
    preserve_rng_state: bool,
    store: OffloadStore | None,
) -> _R:
    with region(policy=policy, preserve_rng_state=preserve_rng_state, store=store):
        return function(*args, **kwargs)
    raise AssertionError  # for type checkers: a region swallows nothing


def checkpoint(
    function: Callable[..., _R],
    *args: Any,
    use_reentrant: bool | None = None,
    context_fn: Callable[[], Any] | None = None,
    determinism_check: str = "default",
    debug: bool = False,
    early_stop: bool = True,
    preserve_rng_state: bool = True,
    policy: AnyPolicy | None = None,
    store: OffloadStore | None = None,
    **kwargs: Any,
) -> _R:
    """Runs `function(*args, **kwargs)` once and keeps for backward only what it read from outside; backward replays
    the rest.

    In place of `torch.utils.checkpoint.checkpoint`. Gradients, random numbers, buffers and side effects are those of
    the call without it, to the bit: backward replays recorded operators below autograd and never calls `function`
    again. So BatchNorm's statistics move once, a router decides once, and arguments may be anything.

    Args:
        use_reentrant, determinism_check, debug, early_stop: taken for torch's sake and ignored, as there is no second
            call.
        context_fn: only torch's `create_selective_checkpoint_contexts`; its policy is asked as `policy` is.
        preserve_rng_state, policy, store: see `region`.

    Returns:
        What `function` returns.

    Raises:
        ValueError: under vmap, forward-mode AD, or inference mode with gradients switched on; for another `context_fn`.
        CheckpointError: in backward, if a tensor that `function` read from outside was changed since.

    Cost: 2 to 5 us, and about 0.4 us an operator in forward; the replayed operators in backward. With gradients
    disabled nothing is recorded.
    """
    if context_fn is not None and policy is None:
        policy = torch_policy(context_fn)
    if store is not None or not preserve_rng_state:
        return _checkpoint_with(function, args, kwargs, policy, preserve_rng_state, store)
    if policy is None:
        handle = _open(None)
    elif type(policy) is Policy:
        handle = _open(policy._options or _options_of(policy))
    else:  # a callable may fail, and be heard of at the end
        return _checkpoint_with(function, args, kwargs, policy, preserve_rng_state, store)
    if not handle:
        raise_last(library)
    try:
        result = function(*args, **kwargs)
    except BaseException:
        _close_failed(handle)
        raise
    _close(handle)
    return result


run_uncompiled(checkpoint, _checkpoint_with)  # type: ignore[arg-type]


def checkpoint_sequential(
    functions: torch.nn.Sequential | Sequence[Callable[..., Any]],
    segments: int,
    input: Any,
    use_reentrant: bool | None = None,
    **kwargs: Any,
) -> Any:
    """Runs a sequence in `segments` parts, all but the last one under `checkpoint`; as
    torch.utils.checkpoint.checkpoint_sequential.

    Raises:
        ValueError: if `segments` is below 1 or above the number of functions.
    """
    parts = list(functions.children()) if isinstance(functions, torch.nn.Sequential) else list(functions)
    if not 1 <= segments <= len(parts):
        raise ValueError(
            f"refrain.checkpoint_sequential: segments is {segments}, expected 1 to {len(parts)}, the number of "
            "functions"
        )
    size = len(parts) // segments

    def run(some: Sequence[Callable[..., Any]], value: Any) -> Any:
        for function in some:
            value = function(value)
        return value

    last = size * (segments - 1)
    for start in range(0, last, size):
        input = checkpoint(run, parts[start : start + size], input, **kwargs)
    return run(parts[last:], input)


def is_checkpointing() -> bool:
    """Whether this thread is inside a region."""
    return bool(library.is_checkpointing())


def is_recomputing() -> bool:
    """Whether this thread is replaying what a region or cap did not keep."""
    return bool(library.is_recomputing())


def set_checkpointing_enabled(value: bool) -> bool:
    """Switches regions on or off in the whole process. Returns the old setting."""
    return bool(library.set_checkpointing_enabled(int(value)))
