"""One plan for all ranks.

Ranks plan for themselves: the plans of a graph differ where measured times do, and nothing is wrong with that, as no plan
moves a collective. Who wants the same work everywhere switches on
`torch._functorch.config._sync_decision_cross_ranks`, by which torch's partitioner agrees on what is saved; then a plan is
that of rank 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from .inductor import functorch_config, part
from .planner import GraphPlan


def agrees(graph: fx.Graph) -> bool:
    """Whether ranks are to agree on a graph's plan: as torch has it, if they were told to and it has collectives, so
    that all of them compile it."""
    distributed = torch.distributed
    if not (functorch_config()._sync_decision_cross_ranks and distributed.is_available()):
        return False
    if not distributed.is_initialized() or distributed.get_world_size() < 2:
        return False
    spaces = (str(node.target.namespace) for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload))
    return any(space in ("_c10d_functional", "c10d_functional") for space in spaces)


def plan_of_rank_0(fingerprint: str, plan: GraphPlan) -> GraphPlan:
    """Rank 0's plan for the graph; the rank's own where the graphs are not all the same. All ranks call it."""
    no_dispatch = part("torch.utils._mode_utils", "no_dispatch")
    unset_fake_temporarily = part("torch._subclasses.fake_tensor", "unset_fake_temporarily")
    mine = (fingerprint, plan.__dict__ if torch.distributed.get_rank() == 0 else None)
    found: list[Any] = [None] * torch.distributed.get_world_size()
    with no_dispatch(), unset_fake_temporarily():
        torch.distributed.all_gather_object(found, mine)
    if any(theirs != fingerprint for theirs, _ in found):
        return plan
    return GraphPlan.of(found[0][1])
