"""Loads the librefrain.so that was built for the torch that is imported, and declares what the binding calls of it."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any, Callable

import torch  # loads LibTorch, which librefrain.so then finds in the process

from ._errors import raise_last

API_VERSION = 1
_HERE = Path(__file__).resolve().parent

_int32, _int64, _size, _double, _text = (
    ctypes.c_int32,
    ctypes.c_int64,
    ctypes.c_size_t,
    ctypes.c_double,
    ctypes.c_char_p,
)
_pointer = ctypes.c_void_p

StepFunction = ctypes.CFUNCTYPE(_int32, _pointer)
BatchStepFunction = ctypes.CFUNCTYPE(_int32, _pointer, _int64)
DecideFunction = ctypes.CFUNCTYPE(_int32, _pointer, _pointer)


def _minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])


def _candidates() -> list[Path]:
    """Where the library may be: named by the environment, in the package (one folder for each torch), in the build
    tree of the sources.
    """
    named = os.environ.get("REFRAIN_LIBRARY")
    if named:
        return [Path(named)]
    found = [_HERE / "lib" / f"torch{_minor(torch.__version__)}" / "librefrain.so"]
    sources = _HERE.parent.parent
    if (sources / "include" / "refrain" / "c_api.h").exists():
        found.append(sources / "build" / "lib" / "librefrain.so")
    return found


def _open() -> tuple[ctypes.CDLL, ctypes.PyDLL, Path]:
    candidates = _candidates()
    path = next((candidate for candidate in candidates if candidate.exists()), None)
    if path is None:
        have = sorted(folder.name[len("torch") :] for folder in (_HERE / "lib").glob("torch*"))
        raise ImportError(
            f"refrain: no librefrain.so for torch {torch.__version__}; looked for {', '.join(map(str, candidates))}"
            + (f". The package has it for torch {', '.join(have)}: install one of these" if have else "")
            + ". Or build it with the torch that is here (`make build`), or name it in REFRAIN_LIBRARY."
        )
    try:
        released = ctypes.CDLL(str(path))
        held = ctypes.PyDLL(str(path))
    except OSError as error:
        raise ImportError(
            f"refrain: {path} does not load beside torch {torch.__version__}: {error}. It was built for another torch: "
            "build it with this one (`make build`), or install the torch that it was built for."
        ) from error
    return released, held, path


class Library:
    """The functions of refrain/c_api.h. `last_*`, `region_open` and `op_*` keep the GIL, as they neither wait nor run
    operators.
    """

    path: Path

    def __init__(self) -> None:
        self._released, self._held, self.path = _open()
        self._check_version()
        f, quick = self._function, self._quick
        self.last_code = quick("last_code", _int32)
        self.last_message = quick("last_message", _text)
        self.last_out_of_memory = quick("last_out_of_memory", _int32, _pointer, _size)
        self.find_refusal = quick("find_refusal", _int32, _text, _pointer, _size)
        self.free = quick("free", None, _pointer)
        self.parse_bytes = f("parse_bytes", _int32, _text, _pointer)
        self.format_bytes = f("format_bytes", _pointer, _int64)
        self._declare_regions(f, quick)
        self._declare_memory(f)
        self._declare_plans(f)
        self._declare_timelines(f, quick)

    def _declare_regions(self, f: Callable[..., Any], quick: Callable[..., Any]) -> None:
        self.policy_named = f("policy_named", _pointer, _text)
        self.policy_of_names = f("policy_of_names", _pointer, _text, ctypes.POINTER(_text), _size)
        self.policy_offload_larger_than = f("policy_offload_larger_than", _pointer, _int64)
        self.policy_and_then = f("policy_and_then", _pointer, _pointer, _pointer)
        self.policy_callback = f("policy_callback", _pointer, DecideFunction, _pointer, _pointer)
        self.policy_close = f("policy_close", None, _pointer)
        self.op_name = quick("op_name", _text, _pointer)
        self.op_overload = quick("op_overload", _text, _pointer)
        self.op_scope = quick("op_scope", _text, _pointer)
        self.op_checkpoint_name = quick("op_checkpoint_name", _text, _pointer)
        self.op_is_random = quick("op_is_random", _int32, _pointer)
        self.op_position = quick("op_position", _int64, _pointer)
        self.op_count = quick("op_count", _int64, _pointer, _text)
        self.op_output_bytes = quick("op_output_bytes", _int64, _pointer)
        self.op_tensors = quick("op_tensors", _size, _pointer, _int32)
        self.op_tensor = quick("op_tensor", None, _pointer, _int32, _size, _pointer, _pointer, _pointer, _pointer)
        self.offload_store_open = f("offload_store_open", _pointer, _pointer)
        self.offload_store_close = f("offload_store_close", None, _pointer)
        self.offload_store_flush = f("offload_store_flush", _int32, _pointer)
        self.offload_store_stats = f("offload_store_stats", _int32, _pointer, _pointer, _size, _pointer)
        self.offload_scope_open = f("offload_scope_open", _pointer, _pointer)
        self.offload_scope_close = f("offload_scope_close", None, _pointer)
        self.region_open = quick("region_open", _pointer, _pointer)
        self.region_add_input = f("region_add_input", _int32, _pointer, _pointer)
        self.region_close = f("region_close", None, _pointer)
        self.region_close_failed = f("region_close_failed", None, _pointer)
        self.is_checkpointing = quick("is_checkpointing", _int32)
        self.is_recomputing = quick("is_recomputing", _int32)
        self.set_checkpointing_enabled = f("set_checkpointing_enabled", _int32, _int32)
        self.checkpoint_name = f("checkpoint_name", _int32, _pointer, _text)
        self.set_policy = f("set_policy", _int32, _pointer, _int32)
        self.backward_begin = f("backward_begin", _pointer, _pointer, _size, _int32)
        self.backward_end = f("backward_end", _int32, _pointer)
        self.backward_close = f("backward_close", None, _pointer)
        self.tape_stats = f("tape_stats", _int32, _pointer, _size)
        self.reset_tape_counters = f("reset_tape_counters", _int32)
        self.set_check_inputs = f("set_check_inputs", _int32, _int32)
        self.note_storage_resized = f("note_storage_resized", _int32, _pointer)
        self.register_side_effect_op = f("register_side_effect_op", _int32, _text)
        self.self_test = f("self_test", _int32)
        self.saved_observer_open = f("saved_observer_open", _pointer)
        self.saved_observer_json = f("saved_observer_json", _pointer, _pointer)
        self.saved_observer_close = f("saved_observer_close", None, _pointer)

    def _declare_memory(self, f: Callable[..., Any]) -> None:
        self.install_memory_tracking = f("install_memory_tracking", _int32)
        self.memory_stats = f("memory_stats", _int32, _pointer, _size)
        self.reset_peak_memory = f("reset_peak_memory", _int32)
        self.release_free_memory = f("release_free_memory", _int32)
        self.memory_scope_open = f("memory_scope_open", _pointer)
        self.memory_scope_read = f("memory_scope_read", _int32, _pointer, _pointer, _pointer, _pointer)
        self.memory_scope_close = f("memory_scope_close", None, _pointer)
        self.memory_limit_open = f("memory_limit_open", _pointer, _pointer)
        self.memory_limit_close = f("memory_limit_close", None, _pointer)
        self.memory_cap_open = f("memory_cap_open", _pointer, _pointer, _pointer)
        self.memory_cap_stats = f("memory_cap_stats", _int32, _pointer, _pointer, _size)
        self.memory_cap_pin = f("memory_cap_pin", _int32, _pointer, _pointer)
        self.memory_cap_close = f("memory_cap_close", None, _pointer)
        self.pin_open = f("pin_open", _pointer, _pointer, _size)
        self.pin_close = f("pin_close", None, _pointer)
        self.opaque_scope_open = f("opaque_scope_open", _pointer, _pointer, _size, _pointer, _size)
        self.opaque_scope_close = f("opaque_scope_close", None, _pointer)
        self.cap_thread_open = f("cap_thread_open", _pointer)
        self.cap_thread_close = f("cap_thread_close", None, _pointer)

    def _declare_plans(self, f: Callable[..., Any]) -> None:
        self.profile = f("profile", _pointer, StepFunction, _pointer, _int32, _text)
        self.step_trace_load = f("step_trace_load", _pointer, _text)
        self.step_trace_save = f("step_trace_save", _int32, _pointer, _text)
        self.step_trace_read = f("step_trace_read", _int32, _pointer, _pointer, _pointer, _pointer)
        self.step_trace_explain = f("step_trace_explain", _int32, _pointer, _int64, _pointer, _pointer)
        self.step_trace_close = f("step_trace_close", None, _pointer)
        self.plan_step = f("plan_step", _pointer, _pointer, _pointer, _double)
        self.step_plan_load = f("step_plan_load", _pointer, _text)
        self.step_plan_save = f("step_plan_save", _int32, _pointer, _text)
        self.step_plan_read = f("step_plan_read", _int32, _pointer, _pointer, _pointer, _pointer, _pointer)
        self.step_plan_report = f("step_plan_report", _pointer, _pointer, _int32)
        self.step_plan_explain = f("step_plan_explain", _int32, _pointer, _int64, _pointer, _pointer)
        self.step_plan_close = f("step_plan_close", None, _pointer)
        self.memory_budget_open = f("memory_budget_open", _pointer, _pointer)
        self.memory_budget_open_plan = f("memory_budget_open_plan", _pointer, _pointer)
        self.memory_budget_stats = f("memory_budget_stats", _int32, _pointer, _pointer, _size, _pointer)
        self.memory_budget_report = f("memory_budget_report", _pointer, _pointer)
        self.memory_budget_close = f("memory_budget_close", None, _pointer)
        self.graph_planner_open = f("graph_planner_open", _pointer, _text, _double)
        self.graph_planner_read = f("graph_planner_read", _int32, _pointer, _pointer, _pointer)
        self.graph_planner_plan = f("graph_planner_plan", _pointer, _pointer, _int64, _double)
        self.graph_planner_pareto = f("graph_planner_pareto", _pointer, _pointer, _int32)
        self.graph_planner_close = f("graph_planner_close", None, _pointer)
        self.least_limit = f("least_limit", _pointer, StepFunction, _pointer, _pointer)
        self.least_limit_read = f("least_limit_read", _int32, _pointer, _pointer, _size)
        self.least_limit_costs = f("least_limit_costs", _size, _pointer)
        self.least_limit_cost = f("least_limit_cost", _int32, _pointer, _size, _pointer, _size)
        self.least_limit_report = f("least_limit_report", _pointer, _pointer)
        self.least_limit_close = f("least_limit_close", None, _pointer)
        self.largest_batch_open = f("largest_batch_open", _pointer, _int64, _int64, _int64)
        self.largest_batch_run = f("largest_batch_run", _int32, _pointer, BatchStepFunction, _pointer)
        self.largest_batch_read = f("largest_batch_read", _int32, _pointer, _pointer, _size)
        self.largest_batch_trials = f("largest_batch_trials", _size, _pointer)
        self.largest_batch_trial = f("largest_batch_trial", _int32, _pointer, _size, _pointer, _size)
        self.largest_batch_close = f("largest_batch_close", None, _pointer)

    def _declare_timelines(self, f: Callable[..., Any], quick: Callable[..., Any]) -> None:
        self.timeline_open = f("timeline_open", _pointer)
        self.timeline_annotate = f(
            "timeline_annotate", _int32, _pointer, _int32, _pointer, ctypes.POINTER(_text), _size
        )
        self.timeline_stop = f("timeline_stop", _pointer, _pointer)
        self.timeline_close = f("timeline_close", None, _pointer)
        self.timeline_read = f("timeline_read", _int32, _pointer, _pointer, _size)
        for name in ("blocks", "events", "phases", "resident", "peak_blocks"):
            setattr(self, f"timeline_{name}", f(f"timeline_{name}", _int32, _pointer, _pointer, _size))
        self.timeline_parts = f("timeline_parts", _int32, _pointer, _pointer, _size)
        self.timeline_text = f("timeline_text", _pointer, _pointer, _int32)
        self.timeline_json = f("timeline_json", _pointer, _pointer)
        self.timeline_trace = f("timeline_trace", _pointer, _pointer)
        self.timeline_report_close = f("timeline_report_close", None, _pointer)
        self.phase_scope_open = quick("phase_scope_open", _pointer, _int32)
        self.phase_scope_close = quick("phase_scope_close", None, _pointer)
        self.module_scope_open = quick("module_scope_open", _pointer, _text)
        self.module_scope_close = quick("module_scope_close", None, _pointer)

    @staticmethod
    def _declared(library: ctypes.CDLL, name: str, result: Any, arguments: tuple[Any, ...]) -> Any:
        function = getattr(library, "refrain_" + name)
        function.restype, function.argtypes = result, arguments
        return function

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        return self._declared(self._released, name, result, arguments)

    def _quick(self, name: str, result: Any, *arguments: Any) -> Any:
        return self._declared(self._held, name, result, arguments)

    def _check_version(self) -> None:
        try:
            api = self._quick("api_version", _int32)()
            self.version: str = self._quick("version", _text)().decode()
            self.torch_version: str = self._quick("torch_version", _text)().decode()
        except AttributeError as error:
            raise ImportError(
                f"refrain: {self.path} has no C API ({error}): it is older than this package. Build it again."
            ) from error
        if api != API_VERSION:
            raise ImportError(
                f"refrain: {self.path} has C API {api}, this package expects {API_VERSION}: install both from one "
                "source."
            )
        if _minor(self.torch_version) != _minor(torch.__version__):
            raise ImportError(
                f"refrain: {self.path} was built for torch {self.torch_version}, found torch {torch.__version__}; "
                "LibTorch has no stable ABI. Build it with this torch (`make build`), or install that one."
            )

    # ---- what every caller does

    def check(self, code: int) -> None:
        """Raises for a code that is not OK."""
        if code != 0:
            raise_last(self)

    def made(self, handle: int | None) -> int:
        """Returns the handle, or raises what kept it from being made."""
        if not handle:
            raise_last(self)
        return handle

    def text(self, pointer: int | None) -> str:
        """Takes over text that the library made."""
        if not pointer:
            raise_last(self)
        try:
            return ctypes.string_at(pointer).decode(errors="replace")
        finally:
            self.free(pointer)


library = Library()


def impls(tensors: list[torch.Tensor]) -> Any:
    """The tensors as the C API takes them. The caller keeps them alive."""
    return (ctypes.c_void_p * len(tensors))(*[tensor._cdata for tensor in tensors])
