"""Modules whose forward runs in a region, chosen by class, name or a function."""

from __future__ import annotations

import fnmatch
import functools
from typing import Any, Callable, Iterable

import torch

from ._offload import OffloadStore
from ._policies import AnyPolicy, Policy, policy_of
from ._regions import checkpoint

__all__ = ["apply_activation_checkpointing", "remove_activation_checkpointing"]


def apply_activation_checkpointing(
    model: torch.nn.Module,
    check_fn: Callable[[torch.nn.Module], bool] | None = None,
    *,
    classes: type | Iterable[type] = (),
    names: str | Iterable[str] = (),
    policy: AnyPolicy | None = None,
    store: OffloadStore | None = None,
) -> list[str]:
    """Has the forward of chosen submodules run under `checkpoint`, in place. As torch's function of that name, but
    modules stay what they are: no wrapper in between, so names of parameters and `state_dict` do not change.

        refrain.apply_activation_checkpointing(model, classes=GPT2Block)
        refrain.apply_activation_checkpointing(model, names="layers.*", policy=refrain.save_matmuls())

    Args:
        check_fn: takes a submodule and returns whether to choose it.
        classes: a class, or several; instances of them are chosen.
        names: patterns of qualified names as `fnmatch` takes them; "layers.*" takes the layers, and not what is inside
            of them once they are chosen.
        policy, store: see `region`.

    Returns:
        The qualified names of what was chosen. A module inside of a chosen one is not chosen again.

    Raises:
        ValueError: if nothing says what to choose, or nothing in the model is.
    """
    kinds = (classes,) if isinstance(classes, type) else tuple(classes)
    patterns = [names] if isinstance(names, str) else list(names)
    if check_fn is None and not kinds and not patterns:
        raise ValueError(
            "refrain.apply_activation_checkpointing: found no check_fn, classes or names; pass one that chooses modules"
        )
    chosen: list[str] = []

    def wanted(name: str, module: torch.nn.Module) -> bool:
        return (
            isinstance(module, kinds)
            or any(fnmatch.fnmatchcase(name, each) for each in patterns)
            or (check_fn is not None and check_fn(module))
        )

    def visit(name: str, module: torch.nn.Module) -> None:
        if name and wanted(name, module):
            chosen.append(name)
            _wrap(module, policy, store)
            return
        for child_name, child in module.named_children():
            visit(f"{name}.{child_name}" if name else child_name, child)

    visit("", model)
    if not chosen:
        asked = [*(kind.__name__ for kind in kinds), *patterns, *(["check_fn"] if check_fn else [])]
        raise ValueError(
            f"refrain.apply_activation_checkpointing: {type(model).__name__} has no submodule that {', '.join(asked)} "
            "chooses"
        )
    return chosen


class _Checkpointed:
    """A module's forward in a region. An object rather than a closure: a copy of the module gets one of its own."""

    def __init__(self, inner: Callable[..., Any], policy: Policy | None, store: OffloadStore | None) -> None:
        self.inner, self.policy, self.store = inner, policy, store
        functools.update_wrapper(self, inner)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # bound, as the forward may have arguments that are named like those of `checkpoint`
        return checkpoint(functools.partial(self.inner, *args, **kwargs), policy=self.policy, store=self.store)


def _wrap(module: torch.nn.Module, policy: AnyPolicy | None, store: OffloadStore | None) -> None:
    before = module.forward
    inner = before.inner if isinstance(before, _Checkpointed) else before
    module.forward = _Checkpointed(inner, None if policy is None else policy_of(policy), store)


def remove_activation_checkpointing(model: torch.nn.Module) -> int:
    """Undoes `apply_activation_checkpointing` in `model` and all that is in it. Returns how many modules it was."""
    found = 0
    for module in model.modules():
        forward = module.__dict__.get("forward")
        if not isinstance(forward, _Checkpointed):
            continue
        found += 1
        if getattr(forward.inner, "__func__", None) is type(module).forward:
            del module.forward  # it was the class's
        else:
            module.forward = forward.inner
    return found
