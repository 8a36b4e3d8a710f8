"""Paths of modules, as timelines, traces and policies see them."""

from __future__ import annotations

import threading
from typing import Any, Callable

import torch

from ._handles import Scope
from ._library import library

__all__ = ["ModuleScope"]


class ModuleScope(Scope):
    """A `with` block that adds a name to the path of modules that timelines, traces and policies (`Op.scope`) see. The
    last one opened is closed first.
    """

    _close = "module_scope_close"

    def __init__(self, name: str) -> None:
        self._name = name

    def _open(self) -> int | None:
        handle: int | None = library.module_scope_open(self._name.encode())
        return handle


class _Paths(threading.local):
    """The modules that run on this thread: full names, and their open scopes."""

    def __init__(self) -> None:
        self.open: list[tuple[str, int]] = []


class ModulePaths:
    """Opens a `ModuleScope` around the forward of each module of `model`, until it is closed."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._paths = _Paths()
        self._hooks = []
        for name, module in model.named_modules():
            if name:
                self._hooks.append(module.register_forward_pre_hook(self._enter(name), prepend=True))
                self._hooks.append(module.register_forward_hook(self._leave, always_call=True))

    def _enter(self, name: str) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            open_ = self._paths.open
            # a list of modules is never called itself: what is left out between two is part of the inner one's name
            inner = name[len(open_[-1][0]) + 1 :] if open_ and name.startswith(open_[-1][0] + ".") else name
            open_.append((name, library.made(library.module_scope_open(inner.encode()))))

        return enter

    def _leave(self, *_: Any) -> None:
        if self._paths.open:
            library.module_scope_close(self._paths.open.pop()[1])

    def close(self) -> None:
        """Takes the hooks away."""
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: Any) -> None:
        self.close()
