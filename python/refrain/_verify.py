"""Checks that a function is the same under `checkpoint`: gradient checking, against the call without it."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field
from typing import Any, Callable, Iterator

import torch

from ._memory import set_check_inputs
from ._offload import OffloadStore
from ._policies import AnyPolicy
from ._regions import region

__all__ = ["VerifiedTensor", "VerifyReport", "verify_checkpoint"]


@dataclass(frozen=True)
class VerifiedTensor:
    """One tensor of the run in a region, beside that of the run without."""

    name: str  #: "output 0", "gradient of input 1", "gradient of 0.weight", "buffer running_mean", "generator cpu"
    bit_equal: bool
    max_abs: float  #: largest difference; infinite if shapes or dtypes differ, or one is None
    max_rel: float  #: largest difference over the magnitude of the baseline's number, where that is not 0


@dataclass(frozen=True)
class VerifyReport:
    """What `verify_checkpoint` found."""

    tensors: list[VerifiedTensor] = field(default_factory=list)
    error: str = ""  #: what the run in a region raised

    @property
    def bit_equal(self) -> bool:
        """Whether the run in a region raised nothing and all tensors are equal to the bit."""
        return not self.error and all(tensor.bit_equal for tensor in self.tensors)

    def __str__(self) -> str:
        if self.error:
            return f"replay: {self.error}"
        other = [tensor for tensor in self.tensors if not tensor.bit_equal]
        lines = [
            f"replay: {len(self.tensors)} tensors, " + (f"{len(other)} of them differ" if other else "equal to the bit")
        ]
        lines += [
            f"  {tensor.name}: largest difference {tensor.max_abs:.3g}, relative {tensor.max_rel:.3g}"
            for tensor in other
        ]
        return "\n".join(lines)


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors_in(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _tensors_in(inner)


def _copy(value: Any) -> Any:
    """The same with new leaves."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_copy(inner) for inner in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_copy(inner) for inner in value)
    return value


def _compared(name: str, baseline: torch.Tensor | None, found: torch.Tensor | None) -> VerifiedTensor:
    if baseline is None or found is None:
        same = baseline is found
        return VerifiedTensor(name, same, 0.0 if same else math.inf, 0.0 if same else math.inf)
    if baseline.shape != found.shape or baseline.dtype != found.dtype:
        return VerifiedTensor(name, False, math.inf, math.inf)
    a, b = (tensor.detach().to_dense().contiguous().cpu() for tensor in (baseline, found))
    if torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)):
        return VerifiedTensor(name, True, 0.0, 0.0)
    kind = torch.complex128 if a.is_complex() else torch.float64
    difference, size = (a.to(kind) - b.to(kind)).abs(), a.to(kind).abs()
    relative = difference[size != 0] / size[size != 0]
    return VerifiedTensor(name, False, difference.max().item(), relative.max().item() if relative.numel() else math.inf)


def verify_checkpoint(
    function: Callable[..., Any],
    *args: Any,
    policy: AnyPolicy | None = None,
    store: OffloadStore | None = None,
    **kwargs: Any,
) -> VerifyReport:
    """Runs `function(*args, **kwargs)` and its backward twice, without a region and in one, and compares results,
    gradients, buffers and generators to the bit.

    Gradients are those of tensors among the arguments that require one and, if `function` is a module, of its
    parameters. The module's buffers and the CPU's generator are as before afterwards, and no `.grad` is written. In
    the region `set_check_inputs` is on, so memory that is refilled through a raw pointer shows.

    Args:
        policy, store: see `region`.

    Returns:
        A `VerifyReport`; print it, or ask its `bit_equal`.

    Raises:
        What `function` raises without a region.

    Cost: two forwards and backwards, and copies of what they return.
    """
    module = function if isinstance(function, torch.nn.Module) else None
    parameters = {} if module is None else {name: p for name, p in module.named_parameters() if p.requires_grad}
    buffers = {} if module is None else dict(module.named_buffers())
    before = {name: buffer.detach().clone() for name, buffer in buffers.items()}
    generator = torch.get_rng_state()

    def restore() -> None:
        torch.set_rng_state(generator)
        with torch.no_grad():
            for name, buffer in buffers.items():
                buffer.copy_(before[name])

    def run(in_region: bool) -> dict[str, torch.Tensor | None]:
        restore()
        given, named = _copy(args), _copy(kwargs)
        with region(policy=policy, store=store) if in_region else contextlib.nullcontext():
            result = function(*given, **named)
        outputs = list(_tensors_in(result))
        found: dict[str, torch.Tensor | None] = {
            f"output {i}": output.detach().clone() for i, output in enumerate(outputs)
        }
        inputs = [tensor for tensor in _tensors_in((given, named)) if tensor.requires_grad]
        wanted = {
            **{f"gradient of input {i}": tensor for i, tensor in enumerate(inputs)},
            **{f"gradient of {name}": p for name, p in parameters.items()},
        }
        roots = [output for output in outputs if output.requires_grad]
        if roots and wanted:
            seeds = [
                torch.linspace(0.5, 1.5, max(1, root.numel()))
                .to(root.dtype)[: root.numel()]
                .reshape(root.shape)
                .to(root.device)
                for root in roots
            ]
            gradients = torch.autograd.grad(roots, list(wanted.values()), seeds, allow_unused=True)
            found.update(zip(wanted, gradients))
        found.update({f"buffer {name}": buffer.detach().clone() for name, buffer in buffers.items()})
        found["generator cpu"] = torch.get_rng_state()
        return found

    try:
        baseline = run(False)
        checked = set_check_inputs(True)
        try:
            found = run(True)
        except Exception as error:  # what it raises only so is what was looked for
            return VerifyReport(error=f"{type(error).__name__}: {error}")
        finally:
            set_check_inputs(checked)
    finally:
        restore()
    names = list(dict.fromkeys([*baseline, *found]))
    return VerifyReport([_compared(name, baseline.get(name), found.get(name)) for name in names])
