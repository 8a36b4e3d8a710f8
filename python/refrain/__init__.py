"""Trains torch models in less memory, from Python: the engine of the C++ library Refrain.

    y = refrain.checkpoint(block, x)                # for torch.utils.checkpoint.checkpoint; the function runs once
    with refrain.MemoryCap("2GiB"): train()         # evicts and recomputes tensors to stay below a limit
    with refrain.MemoryBudget(0.5): train()         # the same, by a plan of the whole step
    torch.compile(model, options=refrain.compile_options("400MiB"))         # a budget on the peak of compiled steps
    refrain.patch_torch()                           # whatever calls torch.utils.checkpoint replays from now on

Results are those without it, to the bit. Errors are Python's kinds: `torch.OutOfMemoryError` for a refused allocation,
`ValueError` for bad input, `refrain.CheckpointError` where backward cannot recompute. Guide: docs/guide/python.md.
"""

from ._breakdown import (
    ActivationCost, Breakdown, BreakdownRow, MemoryParts, breakdown, estimate_fixed, measure_activations,
    measured_parts,
)  # fmt: skip
from ._budget import Budget
from ._compile import (
    BudgetWarning, CompileOptions, CompileReport, GraphReport, compile_budget, compile_options,
)  # fmt: skip
from ._errors import (
    CheckpointError, FormatError, InternalError, OffloadError, OutOfMemoryNumbers, UnsupportedError,
    out_of_memory_numbers,
)  # fmt: skip
from ._library import library as _library
from ._memory import (
    CapThreadScope, MemoryBudget, MemoryBudgetStats, MemoryCap, MemoryCapStats, MemoryLimit, MemoryScope, MemoryStats,
    OpaqueScope, PinScope, TapeStats, format_bytes, install_memory_tracking, memory_stats, pin,
    register_side_effect_op, release_free_memory, reset_peak_memory, reset_tape_counters, set_check_inputs,
    tape_stats,
)  # fmt: skip
from ._modules import ModuleScope
from ._offload import OffloadScope, OffloadStats, OffloadStore
from ._plans import (
    BatchTrial, LargestBatch, LeastLimit, LimitCost, PlanExplanation, PlanHolder, PlanScope, StepPlan, StepTrace,
    largest_batch, least_limit, plan_step, profile,
)  # fmt: skip
from ._policies import (
    CheckpointPolicy, Op, Policy, TensorInfo, and_then, checkpoint_name, dots_saveable, everything_saveable,
    nothing_saveable, offload_compute_intensive, offload_larger_than, offload_only_these_names, offload_ops,
    save_any_names_but_these, save_compute_intensive, save_every_second_matmul, save_matmuls, save_only_these_names,
    save_ops, save_random, set_policy,
)  # fmt: skip
from ._regions import (
    checkpoint, checkpoint_sequential, is_checkpointing, is_recomputing, region, set_checkpointing_enabled,
)  # fmt: skip
from ._saved import SavedReport, SavedTensor, print_saved, saved_tensors, saved_text
from ._timeline import (
    MemoryBlock, MemoryEvent, MemoryPhaseSpan, MemoryTimeline, MemoryTimelineReport, PhaseScope,
    ResidentSample,
)  # fmt: skip
from ._torch_patches import patch_torch, self_test, unpatch_torch
from ._verify import VerifiedTensor, VerifyReport, verify_checkpoint
from ._wrappers import apply_activation_checkpointing, remove_activation_checkpointing

__version__: str = _library.version

__all__ = [
    "ActivationCost", "BatchTrial", "Breakdown", "BreakdownRow", "Budget", "BudgetWarning", "CapThreadScope",
    "CheckpointError", "CheckpointPolicy", "CompileOptions", "CompileReport", "FormatError", "GraphReport",
    "InternalError", "LargestBatch", "LeastLimit", "LimitCost", "MemoryBlock", "MemoryBudget", "MemoryBudgetStats",
    "MemoryCap", "MemoryCapStats", "MemoryEvent", "MemoryLimit", "MemoryParts", "MemoryPhaseSpan", "MemoryScope",
    "MemoryStats", "MemoryTimeline", "MemoryTimelineReport", "ModuleScope", "OffloadError", "OffloadScope",
    "OffloadStats", "OffloadStore", "Op", "OpaqueScope", "OutOfMemoryNumbers", "PhaseScope", "PinScope",
    "PlanExplanation", "PlanHolder", "PlanScope", "Policy", "ResidentSample", "SavedReport", "SavedTensor", "StepPlan",
    "StepTrace", "TapeStats", "TensorInfo", "UnsupportedError", "VerifiedTensor", "VerifyReport", "and_then",
    "apply_activation_checkpointing", "breakdown", "checkpoint", "checkpoint_name", "checkpoint_sequential",
    "compile_budget", "compile_options", "dots_saveable", "estimate_fixed", "everything_saveable", "format_bytes",
    "install_memory_tracking", "is_checkpointing", "is_recomputing", "largest_batch", "least_limit",
    "measure_activations", "measured_parts", "memory_stats", "nothing_saveable", "offload_compute_intensive",
    "offload_larger_than", "offload_only_these_names", "offload_ops", "out_of_memory_numbers", "patch_torch", "pin",
    "plan_step", "print_saved", "profile", "region", "register_side_effect_op", "release_free_memory",
    "remove_activation_checkpointing", "reset_peak_memory", "reset_tape_counters", "save_any_names_but_these",
    "save_compute_intensive", "save_every_second_matmul", "save_matmuls", "save_only_these_names", "save_ops",
    "save_random", "saved_tensors", "saved_text", "self_test", "set_check_inputs", "set_checkpointing_enabled",
    "set_policy", "tape_stats", "unpatch_torch", "verify_checkpoint",
]  # fmt: skip
