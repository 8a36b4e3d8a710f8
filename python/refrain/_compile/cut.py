"""What torch's partitioner does first to a joint graph, where it cuts it, and what is not planned for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from .inductor import functorch_config, partitioners, prefers_channels_last


class NotPlanned(Exception):
    """A joint graph that is not planned for; the message says what is in it."""


@dataclass
class Cut:
    """Where torch cuts a joint graph, and what it would save."""

    forward_outputs: list[Any]
    backward_outputs: list[Any]
    forward_descs: list[Any]
    backward_descs: list[Any]
    info: Any
    saved: list[fx.Node]
    channels_last: bool = False  #: whether inductor lays convolutions out so


def prepare(module: fx.GraphModule, static_inputs: list[int] | None, num_fwd_outputs: int) -> Cut:
    """Does to the joint graph what torch's partitioner does first, and says where it cuts it.

    Raises:
        NotPlanned: for what this package does not plan for.
    """
    parts = partitioners()
    module.graph.eliminate_dead_code()
    module.recompile()
    if functorch_config().cse:
        module.graph = parts.fx_graph_cse(module.graph)
    for node in module.graph.nodes:
        _refuse(node, parts)
    if parts.has_recomputable_ops(module):
        if parts.has_recomputable_rng_ops(module):
            raise NotPlanned(
                "random operators inside of torch.utils.checkpoint; take the checkpoint away, the budget does its work"
            )
        module = parts.cleanup_recompute_tags(module, is_default_partition=False)
    parts.force_save_collectives(module)
    parts.force_save_effectful_ops(module)
    parts.force_save_bw_mutation_src(module)
    info = parts.classify_nodes(module, static_inputs or [], num_fwd_outputs)
    if not info.required_bw_nodes:
        raise NotPlanned("no backward")
    _note_distances(module.graph, info)
    outputs = parts._extract_fwd_bwd_outputs(module, num_fwd_outputs=num_fwd_outputs)
    saved = parts.choose_saved_values_set(module.graph, info, memory_budget=1)
    forward, backward, forward_descs, backward_descs = map(list, outputs)
    saves = [node for node in saved if not parts.is_sym_node(node)]
    channels_last = prefers_channels_last(module)
    return Cut(forward, backward, forward_descs, backward_descs, info, saves, channels_last)


def _refuse(node: fx.Node, parts: Any) -> None:
    if parts._is_backward_state(node):
        raise NotPlanned("compiled autograd's backward state")
    if parts.is_opaque_node(node):
        raise NotPlanned("an opaque object among the inputs")
    if parts.is_with_effects(node):
        raise NotPlanned(f"an operator with effects: {node.name}")
    if parts._is_fwd_seed_offset(node) or parts._is_bwd_seed_offset(node):
        raise NotPlanned("functionalized random numbers (torch._functorch.config.functionalize_rng_ops)")


def _note_distances(graph: fx.Graph, info: Any) -> None:
    """How far a node is from backward: torch's cut reads it off the node."""
    far = int(1e9)
    for node in reversed(graph.nodes):
        if node.op == "output" or info.is_required_fw(node):
            node.dist_from_bw = far
        else:
            node.dist_from_bw = 0
        if node.op != "output" and info.is_required_fw(node):
            for user in node.users:
                node.dist_from_bw = min(node.dist_from_bw, user.dist_from_bw + 1)
