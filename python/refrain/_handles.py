"""What the classes over handles of the C API share: closing, `with` blocks, and structs that it fills."""

from __future__ import annotations

import ctypes
from typing import Any, Iterable, TypeVar

from ._errors import keep_numbers
from ._library import library

_T = TypeVar("_T")
_S = TypeVar("_S", bound="Scope")


class Owned:
    """Has a handle that lives as long as the object. `_close` names the function that ends it."""

    _close = ""
    _handle = 0

    def __del__(self) -> None:
        handle, self._handle = self._handle, 0
        if handle and library is not None:
            getattr(library, self._close)(handle)


class Scope:
    """A `with` block that has a handle: `_open` makes it, and the function that `_close` names ends it."""

    _close = ""
    _handle = 0

    def _open(self) -> int | None:
        raise NotImplementedError

    def __enter__(self: _S) -> _S:
        self._handle = library.made(self._open())
        return self

    def __exit__(self, *exception: Any) -> None:
        keep_numbers(exception)
        handle, self._handle = self._handle, 0
        getattr(library, self._close)(handle)


def struct_of(of: type, leave: Iterable[str] = ()) -> Any:
    """A C struct with the fields of a dataclass: its floats are doubles, all others int64."""
    kinds = {"float": ctypes.c_double, "int": ctypes.c_int64, "bool": ctypes.c_int64}
    fields = [(name, kinds[kind]) for name, kind in of.__annotations__.items() if name not in leave]
    return type("_" + of.__name__, (ctypes.Structure,), {"_fields_": fields})


def read(of: type[_T], struct: Any, function: Any, *arguments: Any, text: str | None = None) -> _T:
    """The dataclass of the struct that `function` fills. @param text  field of the text that it makes beside the
    struct, if it makes one.
    """
    found, made = struct(), ctypes.c_void_p()
    more = () if text is None else (ctypes.byref(made),)
    library.check(function(*arguments, ctypes.byref(found), ctypes.sizeof(found), *more))
    values = {name: getattr(found, name) for name, _ in found._fields_}
    values.update((name, bool(values[name])) for name in values if of.__annotations__[name] == "bool")
    if text is not None:
        values[text] = library.text(made.value)
    return of(**values)
