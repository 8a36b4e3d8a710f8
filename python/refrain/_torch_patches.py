"""All that is changed in torch. Nothing else of this package writes into it; `unpatch_torch` undoes it, and `self_test`
checks it.

1. `torch.autograd.Variable._execution_engine`, when the package is imported: Python's backward calls its engine past
   LibTorch's default one, so a cap would hear of no step's end, and `CheckpointError` would arrive as a plain
   RuntimeError.
2. Methods of `torch.Tensor` that read bytes by pointer, while a cap or budget is open: they make evicted bytes resident
   first.
3. `CompiledFxGraph.__call__` of torch._inductor, once that is imported: its kernels read and write through raw
   pointers, so it runs in an `OpaqueScope`.
4. `torch.utils.checkpoint`, by `patch_torch`.
5. Attributes of `torch.OutOfMemoryError` with the numbers of a refusal, when the package is imported.
6. `torch.UntypedStorage.resize_`, when the package is imported: FSDP2 frees and fills parameters with it, which no
   operator shows.

Of ours, what opens a region is marked for torch.compile: it is run as it is, and all inside of it uncompiled.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import importlib.machinery
import sys
import threading
import types
from typing import Any, Callable, Iterable, Iterator, Sequence

import torch
from torch.autograd import Variable

from ._errors import FIELDS, OutOfMemoryField, as_checkpoint_error, out_of_memory_numbers, raise_last
from ._library import impls, library

__all__ = ["patch_torch", "self_test", "unpatch_torch"]

_lock = threading.RLock()


# ---- 1. The engine


#: Called at the end of each outermost backward that succeeded, on its thread.
after_backward: list[Callable[[], None]] = []


class _Engine:
    """The engine that Python calls, with its backwards bracketed."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def run_backward(self, tensors: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        # grad_tensors, keep_graph, create_graph, inputs, allow_unreachable, accumulate_grad
        accumulates = kwargs["accumulate_grad"] if "accumulate_grad" in kwargs else len(args) > 5 and args[5]
        roots = [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)]
        run = library.made(library.backward_begin(impls(roots), len(roots), int(bool(accumulates))))
        try:
            result = self._inner.run_backward(tensors, *args, **kwargs)
            library.check(library.backward_end(run))
            if after_backward and torch._C._current_graph_task_id() < 0:
                for call in list(after_backward):
                    call()
            return result
        except RuntimeError as error:
            out_of_memory_numbers(error)  # on the thread that has them
            ours = as_checkpoint_error(error)
            if ours is None:
                raise
            raise ours.with_traceback(error.__traceback__) from None
        finally:
            library.backward_close(run)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _patch_engine() -> None:
    engine = Variable._execution_engine
    if not isinstance(engine, _Engine):
        Variable._execution_engine = _Engine(engine)  # type: ignore[assignment]


def _unpatch_engine() -> None:
    engine = Variable._execution_engine
    if isinstance(engine, _Engine):
        Variable._execution_engine = engine._inner


# ---- 2. Readers by pointer

#: `untyped_storage` is how pickling, `torch.save`, `copy.deepcopy`, `share_memory_` and DataLoader's workers get at
#: bytes: its result is read at any later time.
_READERS = ("numpy", "tolist", "data_ptr", "untyped_storage", "__dlpack__", "__array__")
_KEPT = ("untyped_storage",)
_before: dict[str, Any] = {}
_open_caps = 0


def _keep(tensor: torch.Tensor) -> None:
    """Makes bytes that are resident stay so: whoever has asked for a pointer to write through may write at any time."""
    with contextlib.suppress(RuntimeError, NotImplementedError):  # tensors without a plain storage have no pointer
        library.opaque_scope_close(opaque_open((), (tensor,)))


def _reader(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
    keeps = name in _KEPT

    @functools.wraps(inner)
    def method(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        pin = library.pin_open(impls([self]), 1)
        if not pin:
            raise_last(library)
        try:
            if keeps:
                _keep(self)
            return inner(self, *args, **kwargs)
        finally:
            library.pin_close(pin)

    return method


def cap_opened() -> None:
    """A cap or budget is open from now on."""
    global _open_caps
    with _lock:
        _open_caps += 1
        _patch_engine()
        if _open_caps > 1:
            return
        for name in _READERS:
            _before[name] = torch.Tensor.__dict__.get(name)
            setattr(torch.Tensor, name, _reader(name, getattr(torch.Tensor, name)))


def cap_closed() -> None:
    """One of those that `cap_opened` told of has closed."""
    global _open_caps
    with _lock:
        _open_caps -= 1
        if _open_caps > 0:
            return
        for name, inner in _before.items():
            if inner is None:
                delattr(torch.Tensor, name)  # it was the base class's
            else:
                setattr(torch.Tensor, name, inner)
        _before.clear()


@contextlib.contextmanager
def capped() -> Iterator[None]:
    """Something inside opens caps."""
    cap_opened()
    try:
        yield
    finally:
        cap_closed()


# ---- 3. Compiled code

_INDUCTOR = "torch._inductor.output_code"
_compiled_before: dict[type, Any] = {}
#: Called with each compiled graph before it runs.
before_compiled: list[Callable[[Any], None]] = []


def _opaque(inner: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(inner)
    def call(self: Any, inputs: Any) -> Any:
        for hook in before_compiled:
            hook(self)
        written = getattr(self, "mutated_input_idxs", None)
        if written is None:  # of another kind of graph: any of them
            written = range(len(inputs))
        if not written and _open_caps == 0 and not library.is_checkpointing():
            return inner(self, inputs)
        scope = opaque_open(inputs, (inputs[i] for i in written))
        try:
            return inner(self, inputs)  # which empties `inputs`, and so lets go of what it has read
        finally:
            library.opaque_scope_close(scope)

    return call


def opaque_open(reads: Iterable[Any], writes: Iterable[Any]) -> int:
    """Opens an `OpaqueScope` of those that are tensors."""
    given = [[tensor for tensor in tensors if isinstance(tensor, torch.Tensor)] for tensors in (reads, writes)]
    return library.made(library.opaque_scope_open(impls(given[0]), len(given[0]), impls(given[1]), len(given[1])))


def _patch_inductor(module: types.ModuleType) -> None:
    for name in ("CompiledFxGraph", "CompiledAOTI"):
        cls = getattr(module, name, None)
        if cls is not None and cls not in _compiled_before:
            _compiled_before[cls] = cls.__call__
            setattr(cls, "__call__", _opaque(_compiled_before[cls]))


def _unpatch_inductor() -> None:
    for cls, inner in _compiled_before.items():
        setattr(cls, "__call__", inner)
    _compiled_before.clear()


class _InductorFinder(importlib.abc.MetaPathFinder):
    """Patches the module when it is imported: to import it here would cost seconds."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != _INDUCTOR:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        inner = spec.loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            inner(module)
            _patch_inductor(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


_finder = _InductorFinder()


def _watch_inductor() -> None:
    if _INDUCTOR in sys.modules:
        _patch_inductor(sys.modules[_INDUCTOR])
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def _unwatch_inductor() -> None:
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
    _unpatch_inductor()


# ---- 4. torch.utils.checkpoint

_theirs: dict[str, Callable[..., Any]] = {}
_ours: dict[str, Callable[..., Any]] = {}


def _copy_of(function: types.FunctionType) -> types.FunctionType:
    """The same function as another object, so that it can be told from one that a program took from us on purpose."""
    copy = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    functools.update_wrapper(copy, function)
    return copy


def _replace_everywhere(old: Any, new: Any) -> None:
    """In every module that has the function by name."""
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", None)
        if not isinstance(names, dict) or names is globals():
            continue
        for name, value in list(names.items()):
            if value is old:
                names[name] = new


def patch_torch() -> None:
    """Whoever calls `torch.utils.checkpoint.checkpoint` or `checkpoint_sequential` gets ours from now on:
    transformers, accelerate, Lightning, timm.

    Modules that have imported it by name are changed, too. Not seen: a `functools.partial` or attribute that holds
    torch's function already, as that of `gradient_checkpointing_enable()`; so call it first. Calling it again does no
    harm.
    """
    from torch.utils import checkpoint as module

    from . import _regions

    with _lock:
        patch_on_import()
        if _theirs:
            return
        for name in ("checkpoint", "checkpoint_sequential"):
            _theirs[name] = getattr(module, name)
            _ours[name] = _copy_of(getattr(_regions, name))
            _replace_everywhere(_theirs[name], _ours[name])


def patch_on_import() -> None:
    """Changes what the import of the package does: all but `torch.utils.checkpoint`. Once more does no harm."""
    _patch_engine()
    _watch_inductor()
    _patch_out_of_memory()
    _patch_resize()


def unpatch_torch() -> None:
    """Gives torch back all that this package changed in it: `torch.utils.checkpoint` and the engine. `patch_torch`
    puts it back.

    Until then a backward raises RuntimeError where it would raise `CheckpointError`, and what compiled code writes is
    not seen: use `OpaqueScope`.

    Raises:
        RuntimeError: while a cap or budget is open, which need it.
    """
    with _lock:
        if _open_caps > 0:
            raise RuntimeError("refrain.unpatch_torch: a cap or budget is open; close it first")
        for name, theirs in _theirs.items():
            _replace_everywhere(_ours[name], theirs)
        _theirs.clear()
        _ours.clear()
        _unpatch_engine()
        _unwatch_inductor()
        _unpatch_out_of_memory()
        _unpatch_resize()


# ---- 5. Numbers of a refusal


def _patch_out_of_memory() -> None:
    for name in FIELDS:
        setattr(torch.OutOfMemoryError, name, OutOfMemoryField(name))


def _unpatch_out_of_memory() -> None:
    for name in FIELDS:
        if isinstance(torch.OutOfMemoryError.__dict__.get(name), OutOfMemoryField):
            delattr(torch.OutOfMemoryError, name)


# ---- 6. Storages that are resized

_resize_before: Any = None


def _resizer(inner: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(inner)
    def resize_(self: torch.UntypedStorage, size: int) -> Any:
        result = inner(self, size)
        library.check(library.note_storage_resized(self._cdata))
        return result

    return resize_


def _patch_resize() -> None:
    global _resize_before
    if _resize_before is None:
        _resize_before = torch.UntypedStorage.resize_
        torch.UntypedStorage.resize_ = _resizer(_resize_before)  # type: ignore[method-assign]


def _unpatch_resize() -> None:
    global _resize_before
    if _resize_before is not None:
        del torch.UntypedStorage.resize_  # it was the base class's
        _resize_before = None


# ---- Checks


def _same_as_torch() -> None:
    from ._regions import region

    def gradient(record: bool) -> torch.Tensor:
        x = torch.linspace(-1, 1, 64).requires_grad_()
        with region() if record else contextlib.nullcontext():
            y = x.sin().exp()
        torch.autograd.backward(y.sum())
        assert x.grad is not None
        return x.grad

    if not torch.equal(gradient(True), gradient(False)):
        raise RuntimeError("refrain.self_test: a region's gradient differs from that without it")


def self_test() -> None:
    """Checks on a small program that torch still behaves as the library needs, and that what is patched in it is in
    place.

    Raises:
        UnsupportedError: naming the first fact about LibTorch that no longer holds.
        RuntimeError: naming what another package has replaced.
    """
    library.check(library.self_test())
    if not isinstance(Variable._execution_engine, _Engine):
        raise RuntimeError(
            "refrain.self_test: torch.autograd.Variable._execution_engine is not ours: caps hear of no step's end. "
            "Something replaced it after "
            "`import refrain`, or unpatch_torch was called; call patch_torch()."
        )
    packed: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        packed.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        torch.ones(2, requires_grad=True).exp()
    if not packed:
        raise RuntimeError("refrain.self_test: Python's saved_tensors_hooks are no longer called")
    _same_as_torch()


def run_uncompiled(*functions: types.FunctionType) -> None:
    """Has torch.compile run these functions, and all that they call, as they are. torch.compiler.disable does the
    same, but imports torch._dynamo for it, which takes a second, and costs a call.
    """
    try:
        from torch._C._dynamo import eval_frame

        strategy = eval_frame._FrameExecStrategy(eval_frame._FrameAction.SKIP, eval_frame._FrameAction.SKIP)
        for function in functions:
            eval_frame.set_code_exec_strategy(function.__code__, strategy)
            function._torchdynamo_disable = True  # type: ignore[attr-defined]
            function._torchdynamo_disable_msg = "refrain: a region is not compiled"  # type: ignore[attr-defined]
    except (ImportError, AttributeError):
        pass  # of another torch: it may be compiled, and a region inside of compiled code records nothing


patch_on_import()
