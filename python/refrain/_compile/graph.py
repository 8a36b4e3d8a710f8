"""The joint graph of forward and backward as operators and values: what inductor would put into buffers, and in which
order."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any, Iterable

import torch
from torch import fx

from .inductor import partitioners

aten, prims = torch.ops.aten, torch.ops.prims

_ALSO_VIEWS = {
    aten.permute,
    aten.unsqueeze,
    aten.squeeze,
    aten.transpose,
    aten._unsafe_view,
    aten.alias,
    aten.detach,
    aten.reshape,
}
_SPLITS = {aten.unbind, aten.split, aten.split_with_sizes, aten.chunk}
_REDUCTIONS = {
    aten.sum,
    aten.mean,
    aten.amax,
    aten.amin,
    aten.max,
    aten.min,
    aten.var_mean,
    aten.var,
    prims.var,
    aten.argmax,
    aten.argmin,
    aten.any,
    aten.prod,
}
#: Cost so much for an element that inductor makes their result a buffer where several kernels read it.
_HEAVY = {aten.exp, aten.erf, aten.sigmoid, aten.tanh, aten.log}
#: As inductor's `realize_reads_threshold`.
_MOST_READS = 4
#: Operators of torch itself: what they read and make is known. A custom operator may have a state, so its results are
#: kept.
_KNOWN = ("aten", "prims", "inductor_prims", "_inductor_test", "quantized", "mkldnn", "mkldnn_prepacked", "fbgemm")


class NotPlanned(Exception):
    """A joint graph that is not planned for; the message says what is in it."""


def packet_of(node: fx.Node) -> Any:
    return getattr(node.target, "overloadpacket", node.target)


def first_input(node: fx.Node) -> fx.Node:
    found: Any = node.args[0]
    return found  # type: ignore[no-any-return]


def is_call(node: fx.Node) -> bool:
    return node.op == "call_function"


@dataclass
class JointOp:
    """One operator of the trace: the fx node that is run, the values that it makes, what it reads. What is inlined into
    it has no operator of its own."""

    node: fx.Node
    values: list[fx.Node]
    reads: list[fx.Node]  #: values and placeholders
    is_backward: bool = False
    is_kept: bool = False  #: its values cannot be computed again
    is_random: bool = False


@dataclass
class Cut:
    """Where torch cuts a joint graph, and what it would save."""

    forward_outputs: list[Any]
    backward_outputs: list[Any]
    forward_descs: list[Any]
    backward_descs: list[Any]
    info: Any
    saved: list[fx.Node]
    #: names of the fx nodes that a dry run found in buffers; None: guessed
    buffers: set[str] | None = None


@dataclass
class JointGraph:
    """@param module  its graph, after dead code and common subexpressions are gone."""

    module: fx.GraphModule
    cut: Cut
    ops: list[JointOp] = field(default_factory=list)
    values: list[fx.Node] = field(default_factory=list)
    forward_ops: int = 0  #: of `ops`; those of backward follow
    index: dict[fx.Node, int] = field(default_factory=dict)  #: of a value
    death: dict[fx.Node, int] = field(default_factory=dict)  #: of a value: after its last reader
    kept: set[fx.Node] = field(default_factory=set)  #: values that outlive the step, or must be saved

    def __post_init__(self) -> None:
        self._types = partitioners().get_default_op_list()
        self._order = {node: place for place, node in enumerate(self.module.graph.nodes)}
        self._materialized = self._find_materialized()
        self._find_ops()
        self._find_lifetimes()

    # ---- Kinds of nodes

    def is_view(self, node: fx.Node) -> bool:
        return is_call(node) and (self._types.is_view(node) or packet_of(node) in _ALSO_VIEWS)

    @staticmethod
    def _splits(node: fx.Node) -> bool:
        return is_call(node) and packet_of(node) in _SPLITS

    def _is_item(self, node: fx.Node) -> bool:
        return is_call(node) and node.target is operator.getitem and not self._splits(first_input(node))

    def root(self, node: fx.Node) -> fx.Node:
        """The node whose bytes this one is a view of."""
        while True:
            if self.is_view(node):
                node = first_input(node)
            elif is_call(node) and node.target is operator.getitem and self._splits(first_input(node)):
                node = first_input(first_input(node))
            elif self.mutates(node):
                node = first_input(node)
            else:
                return node

    @staticmethod
    def mutates(node: fx.Node) -> bool:
        return is_call(node) and isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable

    def is_extern(self, node: fx.Node) -> bool:
        """Whether it is a kernel of torch's own: matrix products, convolutions, attention, whatever inductor does not
        generate code for."""
        if (
            not is_call(node)
            or node.target is operator.getitem
            or self.is_view(node)
            or self._splits(node)
            or self.mutates(node)
        ):
            return False
        return not self._types.is_fusible(node) and not self._is_inductors(node)

    @staticmethod
    def _is_inductors(node: fx.Node) -> bool:
        """Random numbers from a seed, and what else inductor itself puts into a joint graph: it generates code for
        them."""
        namespace = getattr(node.target, "namespace", "")
        return (
            str(namespace) in ("prims", "inductor_prims")
            and "seed" not in str(packet_of(node))
            or "inductor_random" in str(packet_of(node))
        )

    @staticmethod
    def draws(node: fx.Node) -> bool:
        """Whether it reads a generator: it is never run a second time."""
        if not isinstance(node.target, torch._ops.OpOverload):
            return False
        name = str(packet_of(node))
        for number, argument in enumerate(node.target._schema.arguments):
            if argument.name == "dropout_p":
                given = (
                    node.args[number]
                    if number < len(node.args)
                    else node.kwargs.get("dropout_p", argument.default_value)
                )
                return bool(given != 0.0)
        return (
            torch.Tag.nondeterministic_seeded in node.target.tags
            or name.endswith("inductor_seed")
            or name.endswith("inductor_seeds")
        )

    def _cannot_repeat(self, node: fx.Node) -> bool:
        if self.draws(node) or self.mutates(node):
            return True
        if isinstance(node.target, torch._ops.OpOverload):
            return str(node.target.namespace) not in _KNOWN
        return node.target is not operator.getitem and isinstance(node.target, torch._ops.HigherOrderOperator)

    # ---- Values

    def _find_materialized(self) -> set[fx.Node]:
        """Nodes whose results are buffers of their own."""
        graph, found = self.module.graph, set()
        ends = [
            out
            for out in [*self.cut.saved, *self.cut.forward_outputs, *self.cut.backward_outputs]
            if isinstance(out, fx.Node)
        ]
        for end in ends:
            if self.mutates(end):
                end = end.args[1]  # type: ignore[assignment]
            root = self.root(end)
            if is_call(root):
                found.add(root)
        known = self.cut.buffers
        reads: dict[fx.Node, int] = {}
        for node in graph.nodes:
            if not is_call(node) or partitioners().is_sym_node(node):
                continue
            self._note(node, found, reads, known)
        return {node for node in found if is_call(node) and isinstance(node.meta.get("val"), torch.Tensor)}

    def _note(self, node: fx.Node, found: set[fx.Node], reads: dict[fx.Node, int], known: set[str] | None) -> None:
        if self.is_extern(node) or self.mutates(node):
            for given in node.all_input_nodes:
                root = self.root(given)
                if is_call(root) and root.all_input_nodes and isinstance(root.meta.get("val"), torch.Tensor):
                    found.add(root)
        if isinstance(node.meta.get("val"), (tuple, list)) or self.mutates(node):
            return
        if self._is_item(node):
            found.add(node)
            reads[node] = 1
            return
        if self.is_extern(node) or packet_of(node) in _REDUCTIONS or self.draws(node):
            found.add(node)
        root = self.root(node)
        if root is not node:
            reads[node] = reads.get(root, 1)
            return
        if known is not None:
            if node.name in known:
                found.add(node)
            return
        reads[node] = sum(
            1 if self.root(a) in found or a.op == "placeholder" else reads.get(a, 1) for a in node.all_input_nodes
        )
        readers = {user for user in node.users if not self.is_view(user)} | {
            w for user in node.users if self.is_view(user) for w in user.users
        }
        if len(readers) > 1 and node.all_input_nodes and (reads[node] > _MOST_READS or packet_of(node) in _HEAVY):
            found.add(node)

    def inputs_of(self, node: fx.Node) -> list[fx.Node]:
        """Values and placeholders that computing `node` reads, itself or by what is inlined."""
        found, stack, seen = [], list(node.all_input_nodes), set()
        while stack:
            one = stack.pop()
            if one in seen:
                continue
            seen.add(one)
            if one in self._materialized or one.op == "placeholder":
                found.append(one)
            elif is_call(one):
                stack.extend(one.all_input_nodes)
        return found

    # ---- Operators

    def _find_ops(self) -> None:
        makes: dict[fx.Node, list[fx.Node]] = {}
        for value in sorted(self._materialized, key=self._order.__getitem__):
            makes.setdefault(self._producer(value), []).append(value)
        info, saved = self.cut.info, {self.root(node) for node in self.cut.saved}
        late: dict[fx.Node, float] = {}
        forward: list[tuple[float, JointOp]] = []
        backward: list[tuple[float, JointOp]] = []
        for node, values in makes.items():
            reads = self.inputs_of(node)
            needed = info.is_required_fw(node)
            # what only backward reads, and torch would save all the same: computed in forward, right after what it
            # reads
            is_forward = needed or any(v in saved and node not in info.tangents_closure for v in values)
            place = float(self._order[node])
            if is_forward and not needed:
                place = (
                    max([late.get(self._producer(a), float(self._order[a])) for a in reads if is_call(a)] or [0.0])
                    + 0.5
                )
            late[node] = place
            kept = self._cannot_repeat(node) or any(self._cannot_repeat(a) for a in self.inlined_in(node))
            op = JointOp(node, values, reads, not is_forward, kept, self.draws(node))
            (forward if is_forward else backward).append((place, op))
        for ops in (forward, backward):
            ops.sort(key=lambda pair: pair[0])
        self.forward_ops = len(forward)
        self.ops = [op for _, op in forward + backward]
        for op in self.ops:
            for value in op.values:
                self.index[value] = len(self.values)
                self.values.append(value)

    def _producer(self, value: fx.Node) -> fx.Node:
        return first_input(value) if self._is_item(value) else value

    def inlined_in(self, node: fx.Node) -> Iterable[fx.Node]:
        stack, seen = list(node.all_input_nodes), set()
        while stack:
            one = stack.pop()
            if one in seen or one in self._materialized or not is_call(one):
                continue
            seen.add(one)
            yield one
            stack.extend(one.all_input_nodes)

    def _find_lifetimes(self) -> None:
        end = len(self.ops)
        for place, op in enumerate(self.ops):
            for value in op.values:
                self.death[value] = place + 1
            for value in op.reads:
                if value in self.index:
                    self.death[value] = place + 1
        for out in [*self.cut.forward_outputs, *self.cut.backward_outputs]:
            if isinstance(out, fx.Node) and not self.mutates(out):
                for root in self._sources(out):
                    self.death[root] = end
                    self.kept.add(root)
        for node in self.module.graph.nodes:  # into an input, at the end of forward or backward
            if self.mutates(node):
                until = end if partitioners()._must_be_in_backward(node) else self.forward_ops
                for given in node.all_input_nodes:
                    for root in self._sources(given):
                        self.death[root] = max(self.death[root], until)
        from torch.utils.checkpoint import CheckpointPolicy

        for value in self.values:
            if value.meta.get("recompute") is CheckpointPolicy.MUST_SAVE:
                self.kept.add(value)

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        """The values that a node is a view of, or is computed from if it is inlined."""
        root = self.root(node)
        return [root] if root in self.index else [value for value in self.inputs_of(node) if value in self.index]

    # ---- The trace

    def trace(self, cost_of: Any, model: str) -> dict[str, Any]:
        """As a graph of src/graph/json.h. @param cost_of  of an operator: nanoseconds of a run, bytes of its
        workspace."""
        size = partitioners()._size_of
        birth = {value: place for place, op in enumerate(self.ops) for value in op.values}
        fixed = {value for op in self.ops if op.is_kept for value in op.values} | self.kept
        values = []
        for value in self.values:
            one: dict[str, Any] = {"bytes": size(value), "death": self.death[value]}
            if birth[value] < self.forward_ops and value not in fixed:
                one["evictable"] = True
            values.append(one)
        ops = []
        for op in self.ops:
            ns, workspace = cost_of(self, op)
            one = {"name": str(packet_of(op.node)), "scope": op.node.name, "ns": ns, "workspace": workspace}
            one["inputs"] = sorted({self.index[a] for a in op.reads if a in self.index})
            one["outputs"] = [self.index[value] for value in op.values]
            if op.is_backward:
                one["backward"] = True
            if op.is_backward or op.is_kept:
                one["once"] = True
            if op.is_random:
                one["random"] = True
            ops.append(one)
        return {"kind": "graph", "version": 1, "model": model, "ops": ops, "values": values}


# ---- From torch's joint graph


def prepare(module: fx.GraphModule, static_inputs: list[int] | None, num_fwd_outputs: int) -> Cut:
    """Does to the joint graph what torch's partitioner does first, and says where it cuts it.

    Raises:
        NotPlanned: for what this package does not plan for.
    """
    parts = partitioners()
    module.graph.eliminate_dead_code()
    module.recompile()
    from .inductor import functorch_config

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
    return Cut(
        forward, backward, forward_descs, backward_descs, info, [node for node in saved if not parts.is_sym_node(node)]
    )


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
