"""A plan as two graphs: forward and backward of the joint graph, with values computed again where the plan says,
several times where it says so."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any, Iterable

import torch
from torch import fx

from .cut import NotPlanned
from .graph import JointGraph, JointOp, Key, Part, is_call
from .inductor import NEAR, TAG, part, partitioners
from .planner import Places, resident_after


@dataclass
class Emitted:
    """What was made of a plan."""

    forward: fx.GraphModule
    backward: fx.GraphModule
    saved: list[fx.Node]
    recomputed: list[str] = field(default_factory=list)  #: operators, once for each time


class _Walk:
    """Writes one of the graphs, operator by operator. `env` has for each value that is resident now the node that made
    it last."""

    def __init__(self, joint: JointGraph, record: str, is_bounded: bool) -> None:
        self.joint, self.graph, self.record, self.is_bounded = joint, fx.Graph(), record, is_bounded
        self.env: dict[Key, fx.Node] = {}
        self.inputs: dict[fx.Node, fx.Node] = {}  #: of the graph that is written, with those that are no values
        self.inlined: dict[Key, fx.Node] = {}  #: nodes that are no values, of which there is a copy to read
        self.symbols: list[fx.Node] | None = None  #: sizes that are saved; None: computed where they are needed
        self._reads: dict[Key, set[Key]] = {}
        self._tag: tuple[str, int, bool] = (record, -1, False)
        #: Places within which a copy of an inlined node is read again: read from afar, it would become a buffer and
        #: live as long; None: everywhere, as in torch's own graphs.
        self.reach: int | None = None
        self._written: dict[Key, int] = {}  #: place of an inlined node's copy
        self._slices: dict[tuple[fx.Node, fx.Node], fx.Node] = {}  #: of a `cat`'s copy and its operand

    def add_input(self, node: fx.Node) -> fx.Node:
        held = self.graph.placeholder(node.name)
        held.meta = node.meta
        self.inputs[node] = held
        return held

    def drop(self, value: Key) -> None:
        if self.env.pop(value, None) is not None:
            self._forget(value)

    def _forget(self, value: Key) -> None:
        """What was computed from a copy that is gone is not read any more."""
        for key in [key for key in self.inlined if value in self._reads_of(key)]:
            del self.inlined[key]

    def _reads_of(self, key: Key) -> set[Key]:
        if key not in self._reads:
            self._reads[key] = set(self.joint.inputs_of(*key))
        return self._reads[key]

    def _there(self, node: fx.Node, phase: int) -> fx.Node | None:
        part_ = self.joint.part_read(node, phase)
        if part_ is not None and part_.whole in self.env:
            return self._slice(self.env[part_.whole], part_, node)
        value = self.joint.value_read(node, phase)
        if value is not None and part_ is None:
            return self.env.get(value)
        if node in self.inputs:
            return self.inputs[node]
        key = node, phase
        if self.reach is not None and key in self.inlined and self._tag[1] - self._written[key] > self.reach:
            del self.inlined[key]
        return self.inlined.get(key)

    def _slice(self, whole: fx.Node, part_: Part, node: fx.Node) -> fx.Node:
        key = whole, node
        if key not in self._slices:
            target = torch.ops.aten.slice.Tensor
            where = part_.dim, part_.begin, part_.end
            made = self._slices[key] = self.graph.call_function(target, (whole, *where))
            made.meta = {name: value for name, value in node.meta.items() if name not in ("tensor_meta", "recompute")}
            made.meta |= {"val": target(whole.meta["val"], *where), TAG: self._tag}
        return self._slices[key]

    def get(self, node: fx.Node, phase: int) -> fx.Node:
        """The node to read, which is written if it is none of the values."""
        stack = [node]
        while stack:
            one = stack[-1]
            if self._there(one, phase) is not None:
                stack.pop()
                continue
            if self.symbols is not None and partitioners().is_sym_node(one):
                self.symbols.append(one)
                stack.pop()
                with self.graph.inserting_before(next(iter(self.graph.nodes))):
                    self.add_input(one)
                continue
            is_part = self.joint.part_read(one, phase) is not None  # written with its `cat`
            if one.op == "placeholder" or (self.joint.value_read(one, phase) is not None and not is_part):
                raise NotPlanned(f"{one.name}, which is read where the plan has it not")
            missing = [given for given in one.all_input_nodes if self._there(given, phase) is None]
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            self.inlined[one, phase] = self._copy(one, phase)
            self._written[one, phase] = self._tag[1]
        found = self._there(node, phase)
        assert found is not None
        return found

    def _copy(self, node: fx.Node, phase: int, instead: dict[fx.Node, fx.Node] | None = None) -> fx.Node:
        given = instead or {}
        copy = self.graph.node_copy(node, lambda a: given[a] if a in given else self.get(a, phase))
        if is_call(node):
            copy.meta[TAG] = self._tag
        return copy

    def run(self, op: JointOp, place: int, is_again: bool) -> None:
        """Writes an operator: all of its values, or, again, those that are not resident."""
        missing = [value for value in op.values if not (is_again and value in self.env)]
        if not missing:
            return
        self._tag = (self.record, place if self.is_bounded else -1, is_again)
        for given in op.node.all_input_nodes:
            self.get(given, op.phase)
        made = self._copy(op.node, op.phase)
        for value in missing:
            self._forget(value)
            self.env[value] = made if value[0] is op.node else self._copy(value[0], op.phase, {op.node: made})

    def act(self, place: int, actions: Iterable[tuple[str, int]], recomputed: list[str]) -> None:
        for kind, number in actions:
            if kind == "drop":
                self.drop(self.joint.values[number])
                continue
            op = self.joint.ops[number]
            kept, self.inlined = self.inlined, {}  # shared with others, an inlined node would be a buffer
            self.run(op, place, True)
            self.inlined = kept
            for value in op.values:
                self._forget(value)
            recomputed.append(op.node.name)
            for value in op.values:
                if kind == "recompute_in_place" and value in self.joint.overwrites:
                    self.drop(self.joint.overwrites[value])

    def finish(self, outputs: list[Any], descs: list[Any], ended: Iterable[fx.Node], phase: int) -> None:
        for node in ended:
            self.get(node, phase)
        values = tuple(self.get(out, phase) if isinstance(out, fx.Node) else out for out in outputs)
        out = self.graph.output(values)
        out.meta["desc"] = descs
        traces = [value.meta.get("stack_trace") if isinstance(value, fx.Node) else None for value in outputs]
        out.meta["output_stack_traces"] = traces


def _resident_after_forward(joint: JointGraph, places: Places) -> list[Key]:
    outputs = [[joint.index[value] for value in op.values] for op in joint.ops]
    values = [joint.lifetime(value) for value in joint.values]
    return [joint.values[n] for n in sorted(resident_after(places, outputs, values, joint.forward_ops))]


def _unchecked(node: fx.Node) -> bool:
    return bool(node.meta.get("saved_tensor_with_no_vc_check", False))


def _ended(joint: JointGraph, is_backward: bool) -> list[fx.Node]:
    """What has an effect of its own: writes into inputs, checks of sizes."""
    parts = partitioners()
    depends: set[fx.Node] = set()
    run = {op.node for op in joint.ops}
    found = []
    for node in joint.module.graph.nodes:
        if parts._is_tangent(node) or any(given in depends for given in node.all_input_nodes):
            depends.add(node)
        if not is_call(node) or not (node.is_impure() or joint.mutates(node)):
            continue
        in_backward = parts._must_be_in_backward(node) or (node in depends and not parts._must_be_in_forward(node))
        if in_backward == is_backward and node not in run:
            found.append(node)
    return found


def _write_backward(joint: JointGraph, places: Places, walk: _Walk, recomputed: list[str]) -> dict[fx.Node, fx.Node]:
    """@return  the inputs that are values or primals, with their nodes."""
    parts, cut = partitioners(), joint.cut
    graph = joint.module.graph
    held = {}
    for node in graph.find_nodes(op="placeholder"):
        if parts._is_primal(node) and not parts.is_sym_node(node):
            held[node] = walk.add_input(node)
    for value in _resident_after_forward(joint, places):
        held[value[0]] = walk.env[value] = walk.add_input(value[0])
    for node in graph.find_nodes(op="placeholder"):
        if parts._is_tangent(node):
            walk.add_input(node)
    walk.symbols = []
    walk.reach = NEAR if walk.is_bounded else None
    dying: dict[int, list[Key]] = {}
    for value in joint.values:
        dying.setdefault(joint.death[value], []).append(value)
    first, end = joint.forward_ops, len(joint.ops)
    for place in range(first, end + 1):
        if first < place < end:
            for value in dying.get(place, []):
                walk.drop(value)
        walk.act(place, places.get(place, []), recomputed)
        if place < end:
            walk.run(joint.ops[place], place, False)
    walk.finish(cut.backward_outputs, cut.backward_descs, _ended(joint, True), 1)
    walk.graph.eliminate_dead_code()
    return held


def _saved_symbols(joint: JointGraph, symbols: list[fx.Node], others: list[fx.Node]) -> list[fx.Node]:
    """Sizes to save: those that are inputs come first, and the ones that what is saved is described with are among
    them."""
    module = "torch.fx.experimental.symbolic_shapes"
    binds = part(module, "is_symbol_binding_fx_node")
    free_symbols, bindings = part(module, "free_symbols"), part(module, "find_symbol_binding_fx_nodes")(
        joint.module.graph
    )
    bound = {binds(node): node for node in symbols if binds(node)}
    derived = [node for node in symbols if not binds(node)]
    for node in [*derived, *others]:
        if "val" in node.meta:
            for symbol in sorted(free_symbols(node.meta["val"]), key=lambda s: str(s.name)):
                if symbol in bindings:
                    bound.setdefault(symbol, bindings[symbol])
    return [*bound.values(), *derived]


def emit(joint: JointGraph, places: Places, record: str, is_bounded: bool) -> Emitted:
    """Writes the graphs of a plan.

    Args:
        is_bounded: whether the peak is to be lower than that of torch's own graphs. If so, operators run in the order
            of the plan, and kernels with large results one by one, even where nothing is recomputed.

    Raises:
        NotPlanned: where the plan reads what it does not have; a defect, after which torch's partitioner can run.
    """
    parts, cut, graph = partitioners(), joint.cut, joint.module.graph
    recomputed: list[str] = []
    backward = _Walk(joint, record, is_bounded)
    held = _write_backward(joint, places, backward, recomputed)
    saved = [node for node, holder in held.items() if holder.users]
    for node, holder in held.items():
        if not holder.users:
            backward.graph.erase_node(holder)
    saved.sort(key=_unchecked)
    tangents = [node for node in graph.find_nodes(op="placeholder") if parts._is_tangent(node)]
    symbols = _saved_symbols(joint, backward.symbols or [], [*saved, *tangents])
    _order_inputs(backward, [*symbols, *saved, *tangents])

    forward = _Walk(joint, record, is_bounded)
    for node in graph.find_nodes(op="placeholder"):
        if parts._is_primal(node):
            forward.add_input(node)
    for place in range(joint.forward_ops):
        forward.act(place, places.get(place, []), recomputed)
        forward.run(joint.ops[place], place, False)
    described = importlib.import_module("torch._functorch._aot_autograd.descriptors")
    checked = sum(not _unchecked(node) for node in saved)
    descs = [
        (
            described.SavedForBackwardsNoVcCheckAOTOutput(i)
            if checked <= i < len(saved)
            else described.SavedForBackwardsAOTOutput(i)
        )
        for i in range(len(saved) + len(symbols))
    ]
    forward.finish([*cut.forward_outputs, *saved, *symbols], [*cut.forward_descs, *descs], _ended(joint, False), 0)
    forward.graph.eliminate_dead_code()
    modules = [_module_of(joint, walk.graph, walk is backward, record) for walk in (forward, backward)]
    return Emitted(modules[0], modules[1], saved, recomputed)


def _order_inputs(walk: _Walk, order: list[fx.Node]) -> None:
    """Sizes, what is saved, tangents: as torch calls the backward graph."""
    for node in order:
        if node not in walk.inputs:  # a size that only describes what is saved
            with walk.graph.inserting_before(next(iter(walk.graph.nodes))):
                walk.add_input(node)
    anchor = walk.graph._root
    for node in order:
        anchor.append(walk.inputs[node])
        anchor = walk.inputs[node]


def _module_of(joint: JointGraph, graph: fx.Graph, is_backward: bool, record: str) -> Any:
    if is_backward:
        for node in graph.nodes:
            if node.op in ("call_function", "get_attr"):
                node.meta["autograd_backward"] = True
    for node in graph.nodes:
        if is_call(node):  # names are in the key of inductor's cache, and so is the record that way
            node.name = f"{TAG}_{record.replace('-', '_')}_{node.name}"
            break
    graph.lint()
    parts = partitioners()
    module = parts.raise_getitems(part("torch.fx._lazy_graph_module", "_make_graph_module")(joint.module, graph))
    return parts.thread_graphsafe_rng_from_hops(module, is_backward=is_backward)


def saved_bytes(saved: Iterable[fx.Node]) -> int:
    """Of what forward hands to backward beside inputs."""
    return sum(
        int(partitioners()._size_of(node))
        for node in saved
        if node.op != "placeholder" and isinstance(node.meta.get("val"), torch.Tensor)
    )
