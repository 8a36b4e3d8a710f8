"""All that this package uses of torch's private parts to plan for torch.compile. `missing_parts` checks it; where
something is missing, torch's own partitioner runs.

What is used, and for what:

- `torch._functorch.partitioners`: which nodes belong to forward, which saves torch has been told to make, what it would
  save itself, and how the two graphs are cut.
- `CustomPartitionerFn`, `_pre_fusion_custom_pass`, `_post_fusion_custom_pass`: inductor's own hooks. The partitioner
  returns the graphs of a plan; the first pass
  has inductor not fuse a recomputation with what is far from it in the plan, the second puts kernels into the plan's
  order.
- The C++ backend's `ready_to_flush`: large kernels are called one by one. The wrapper's `memory_plan_reuse` and its
  `estimate_peak`: a dead buffer is handed on to the next kernel only.
- `Scheduler` nodes: the fx nodes that a kernel was made of, what it reads and writes, its predecessors.
- `reset_code` and the code object that Dynamo compiles: a graph whose peak was above its budget is compiled again.
"""

from __future__ import annotations

import heapq
import importlib
import types
from typing import Any, Callable, Iterable, Sequence

import torch

#: Minor versions of torch that the parts below were read in and are tested with.
SUPPORTED = ("2.13", "2.14")

#: (module, what is used of it)
PARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "torch._functorch.partitioners",
        (
            "_extract_fwd_bwd_outputs", "_extract_graph_with_inputs_outputs", "_is_primal", "_is_tangent",
            "_is_fwd_seed_offset", "_is_bwd_seed_offset", "_is_backward_state", "_must_be_in_backward",
            "_must_be_in_forward", "_size_of", "choose_saved_values_set", "classify_nodes", "cleanup_recompute_tags",
            "force_save_bw_mutation_src", "force_save_collectives", "force_save_effectful_ops", "fx_graph_cse",
            "get_default_op_list", "has_recomputable_ops", "has_recomputable_rng_ops", "is_opaque_node", "is_sym_node",
            "is_with_effects", "min_cut_rematerialization_partition", "raise_getitems",
            "thread_graphsafe_rng_from_hops",
        ),
    ),
    (
        "torch._functorch._aot_autograd.descriptors",
        ("SavedForBackwardsAOTOutput", "SavedForBackwardsNoVcCheckAOTOutput"),
    ),
    ("torch._functorch.config", ("cse", "activation_memory_budget", "_sync_decision_cross_ranks")),
    ("torch._inductor.custom_graph_pass", ("CustomPartitionerFn", "CustomSchedulerPass")),
    ("torch._inductor.config", ("custom_partitioner_fn", "_pre_fusion_custom_pass", "_post_fusion_custom_pass")),
    ("torch._inductor.graph", ("GraphLowering.decide_layout_opt",)),
    ("torch._inductor.memory", ("compute_size_for_scheduler_buffer",)),
    ("torch._inductor.lowering", ("fallbacks", "lowerings")),
    ("torch._inductor.choices", ("InductorChoices.can_fuse",)),
    ("torch._inductor.virtualized", ("V",)),
    (
        "torch._inductor.scheduler",
        (
            "Scheduler.get_backend", "BaseScheduling.ready_to_flush", "BaseSchedulerNode.get_nodes",
            "BaseSchedulerNode.get_outputs", "BaseSchedulerNode.get_buffer_names",
            "BaseSchedulerNode.get_operation_names", "BaseSchedulerNode.get_device",
        ),
    ),
    ("torch._inductor.output_code", ("CompiledFxGraph",)),
    ("torch._inductor.codegen.wrapper", ("EfficientPeakEstimate", "PythonWrapperCodegen.memory_plan_reuse")),
    ("torch._dynamo.symbolic_convert", ("InstructionTranslator.current_tx",)),
    ("torch._C._dynamo.eval_frame", ("reset_code",)),
    ("torch.fx._lazy_graph_module", ("_make_graph_module",)),
    (
        "torch.fx.experimental.symbolic_shapes",
        ("find_symbol_binding_fx_nodes", "free_symbols", "is_symbol_binding_fx_node"),
    ),
    ("torch._subclasses.fake_tensor", ("unset_fake_temporarily",)),
    ("torch.utils._mode_utils", ("no_dispatch",)),
)  # fmt: skip

#: Of an fx node: (record, place in the plan, whether it is a recomputation). Copies of nodes keep it. The place is -1
#: where the plan recomputes nothing: that graph is torch's own.
TAG = "refrain"
#: Begins the line of a compiled graph's source that names its record.
MARK = "# refrain.compile_options: "


def minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])


def part(module: str, name: str) -> Any:
    """One of `PARTS`."""
    return getattr(importlib.import_module(module), name)


def missing_parts() -> list[str]:
    """What of torch's private parts is not as expected, in words; empty: all of it is there."""
    missing = []
    if minor(torch.__version__) not in SUPPORTED:
        missing.append(f"torch is {torch.__version__}, known are {', '.join(SUPPORTED)}")
    for module, names in PARTS:
        try:
            found = importlib.import_module(module)
        except ImportError:
            missing.append(f"no module {module}")
            continue
        for name in names:
            one: Any = found
            for word in name.split("."):
                one = getattr(one, word, None)
            if one is None and not hasattr(found, name):
                missing.append(f"no {module}.{name}")
    return missing


def partitioners() -> Any:
    return importlib.import_module("torch._functorch.partitioners")


def functorch_config() -> Any:
    return importlib.import_module("torch._functorch.config")


def prefers_channels_last(module: Any) -> bool:
    """Whether inductor lays out what convolutions read and make with channels last."""
    return bool(part("torch._inductor.graph", "GraphLowering").decide_layout_opt(module, is_inference=False))


#: Lowered, but to a kernel of torch's own.
_CALLS = (
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "convolution",
    "_scaled_mm",
    "_int_mm",
    "sort",
    "topk",
    "nonzero",
    "bucketize",
)


def generates_code(node: Any) -> bool:
    """Whether inductor generates the code of an operator, rather than call torch's kernel."""
    importlib.import_module("torch._inductor.compile_fx")  # which registers what there is
    target = node.target
    packet = str(getattr(target, "overloadpacket", target)).rsplit(".", 1)[-1]
    if packet in _CALLS or isinstance(node.meta.get("val"), (tuple, list)):
        return False
    return target in part("torch._inductor.lowering", "lowerings") and target not in part(
        "torch._inductor.lowering", "fallbacks"
    )


# ---- What Dynamo compiles


def code_being_compiled() -> types.CodeType | None:
    """Of the function that Dynamo compiles right now on this thread."""
    translator = part("torch._dynamo.symbolic_convert", "InstructionTranslator")
    try:
        code: types.CodeType = translator.current_tx().output.root_tx.f_code
    except AttributeError:
        return None
    return code


def forget(codes: Iterable[types.CodeType]) -> None:
    """Has Dynamo compile these again when they are called next."""
    reset_code = part("torch._C._dynamo.eval_frame", "reset_code")
    for code in codes:
        reset_code(code)


# ---- Inside of the scheduler


def tags_of(node: Any) -> list[tuple[str, int, bool]]:
    """Of the fx nodes that a kernel was made of."""
    found = []
    for one in node.get_nodes():
        if one.node is None:
            continue
        for origin in one.node.get_origins():
            tag = origin.meta.get(TAG)
            if tag is not None:
                found.append(tag)
    return found


#: Places of a plan within which a recomputation may be fused. One kernel makes what several operators of a trace make,
#: so neighbours are told from strangers so.
NEAR = 2


def are_near(one: Any, other: Any) -> bool:
    """Whether two kernels may be fused: none of them recomputes, or their places in the plan are close, and all
    recomputations of one place. Fused, both run where the later one does, and so does all that waits for them; what
    they make is there from then on."""
    tags = tags_of(one) + tags_of(other)
    recomputed = {place for _, place, is_recomputed in tags if is_recomputed}
    if not recomputed:
        return True
    places = [place for _, place, _ in tags]
    return len(recomputed) == 1 and max(places) - min(places) <= NEAR


_choices_class: list[Any] = []


def _choices() -> Any:
    """Inductor's rules of fusion with ours before them."""
    if not _choices_class:
        base = part("torch._inductor.choices", "InductorChoices")

        class PlanChoices(base):  # type: ignore[misc, valid-type]
            """Asks the rules that were in force, after the plan's own."""

            def __init__(self, inner: Any) -> None:
                super().__init__()
                self._inner = inner

            def __getattribute__(self, name: str) -> Any:
                if name in ("can_fuse", "_inner", "__class__"):
                    return super().__getattribute__(name)
                return getattr(super().__getattribute__("_inner"), name)

            def can_fuse(self, scheduler: Any, one: Any, other: Any, shared: int) -> bool:
                return are_near(one, other) and bool(self._inner.can_fuse(scheduler, one, other, shared))

        _choices_class.append(PlanChoices)
    return _choices_class[0]


def _record_of(nodes: Sequence[Any]) -> str | None:
    for node in nodes:
        for record, _, _ in tags_of(node):
            return record
    return None


def _edges(nodes: Sequence[Any]) -> tuple[dict[Any, set[Any]], dict[Any, int]]:
    """Who waits for a node, and for how many it waits."""
    by_name = {name: node for node in nodes for name in node.get_buffer_names()}
    by_name.update({name: node for node in nodes for name in node.get_operation_names()})
    successors: dict[Any, set[Any]] = {node: set() for node in nodes}
    waits = dict.fromkeys(nodes, 0)
    for node in nodes:
        before = {by_name[dep.name] for dep in node.unmet_dependencies if dep.name in by_name} - {node}
        waits[node] = len(before)
        for other in before:
            successors[other].add(node)
    return successors, waits


def in_plan_order(nodes: list[Any]) -> list[Any]:
    """Kernels by their places in the plan, as far as what they read allows. A kernel of several places runs at the last
    of them. Without tags: as they are."""
    key: dict[Any, tuple[int, int]] = {}
    place = -1
    for number, node in enumerate(nodes):
        places = [found for _, found, _ in tags_of(node)]
        place = max(places) if places else place  # a kernel without a tag stays behind the one before it
        key[node] = place, number
    if place < 0:
        return nodes
    successors, waits = _edges(nodes)
    ready = [(key[node], node) for node in nodes if waits[node] == 0]
    heapq.heapify(ready)
    ordered: list[Any] = []
    while ready:
        _, node = heapq.heappop(ready)
        ordered.append(node)
        for other in successors[node]:
            waits[other] -= 1
            if waits[other] == 0:
                heapq.heappush(ready, (key[other], other))
    return ordered if len(ordered) == len(nodes) else nodes


#: A kernel whose results are at least this part of the largest one is a call of its own.
_LARGE = 64


def call_large_kernels_alone() -> None:
    """For C++ kernels, which inductor calls several at a time: what all of them make is allocated before the call, and
    what they read freed after it."""
    V = part("torch._inductor.virtualized", "V")
    scheduler = V.graph.scheduler
    sizes = part("torch._inductor.memory", "compute_size_for_scheduler_buffer")(scheduler.name_to_buf)
    least = max((size for size, _ in sizes.values()), default=0) // _LARGE
    devices = {device.type: device for node in scheduler.nodes if (device := node.get_device()) is not None}
    if "cpu" not in devices:
        return
    backend = scheduler.get_backend(devices["cpu"])
    inner = backend.ready_to_flush

    def ready_to_flush() -> bool:
        made = sum(sizes.get(buffer.get_name(), (0, 0))[0] for buffer in scheduler.current_node.get_outputs())
        return made > least or bool(inner())

    backend.ready_to_flush = ready_to_flush


def reuse_buffers_at_once() -> None:
    """Has inductor hand on a dead buffer to the next kernel only. It would hold one until a later kernel has use for
    it,
    up to what it takes for the peak: an estimate that knows of nothing written in place and of no workspace."""
    wrapper = part("torch._inductor.virtualized", "V").graph.wrapper_code
    inner = wrapper.memory_plan_reuse

    def memory_plan_reuse() -> None:
        estimate = getattr(wrapper, "estimate_peak", None)
        if estimate is not None:
            estimate.overall_peak_memory = 0
        inner()

    wrapper.memory_plan_reuse = memory_plan_reuse


_open_choices: list[Any] = []


def _close_choices() -> None:
    while _open_choices:
        _open_choices.pop().__exit__(None, None, None)


_passes: list[Any] = []


def passes() -> tuple[Any, Any]:
    """For `_pre_fusion_custom_pass` and `_post_fusion_custom_pass`. They do nothing to graphs that no plan has
    tagged."""
    if not _passes:
        base = part("torch._inductor.custom_graph_pass", "CustomSchedulerPass")
        V = part("torch._inductor.virtualized", "V")

        class BeforeFusion(base):  # type: ignore[misc, valid-type]
            """Puts our rule of fusion in force until the pass after it."""

            def uuid(self) -> str:
                return "refrain"

            def __call__(self, nodes: list[Any]) -> list[Any]:
                _close_choices()  # of a graph whose compilation failed in between
                record = _record_of(nodes)
                if record is not None:
                    V.graph.wrapper_code.header.writeline(MARK + record)
                    scope = V.set_choices_handler(_choices()(V.choices))
                    scope.__enter__()
                    _open_choices.append(scope)
                return nodes

        class AfterFusion(base):  # type: ignore[misc, valid-type]
            """The plan's order again: fusion sorts kernels by names."""

            def uuid(self) -> str:
                return "refrain"

            def __call__(self, nodes: list[Any]) -> list[Any]:
                _close_choices()
                if any(place >= 0 for node in nodes for _, place, _ in tags_of(node)):
                    call_large_kernels_alone()
                    reuse_buffers_at_once()
                return in_plan_order(nodes)

        for kind in (BeforeFusion, AfterFusion):  # pickled by name, as part of inductor's configuration
            kind.__qualname__ = kind.__name__
            globals()[kind.__name__] = kind
            _passes.append(kind())
    return _passes[0], _passes[1]


def restored(key: str) -> str:
    """What a partitioner is when it is read back: inductor pickles it as part of a key and never reads it."""
    return key


_partitioners: list[Any] = []


def partitioner_of(call: Callable[..., Any], key: Callable[[], str]) -> Any:
    """For `custom_partitioner_fn`: `call` cuts a joint graph, `key` is its part of the key of torch's caches."""
    if not _partitioners:
        base = part("torch._inductor.custom_graph_pass", "CustomPartitionerFn")

        class RefrainPartitioner(base):  # type: ignore[misc, valid-type]
            def __init__(self, call: Callable[..., Any], key: Callable[[], str]) -> None:
                self._call, self._key = call, key

            def uuid(self) -> str:
                return self._key()

            def __reduce__(self) -> Any:
                return restored, (self._key(),)

            def __call__(self, gm: Any, joint_inputs: Any, **options: Any) -> Any:
                return self._call(gm, joint_inputs, **options)

        _partitioners.append(RefrainPartitioner)
    return _partitioners[0](call, key)


def record_in(compiled: Any) -> str | None:
    """The record that the source of a `CompiledFxGraph` names, whether it was compiled now or came out of a cache."""
    source = getattr(compiled, "source_code", None)
    at = source.find(MARK) if isinstance(source, str) else -1
    return None if at < 0 or source is None else source[at + len(MARK) :].split("\n", 1)[0].strip()


def is_backward_graph(compiled: Any) -> bool:
    return bool(getattr(compiled, "fx_kwargs", {}).get("is_backward", False))
