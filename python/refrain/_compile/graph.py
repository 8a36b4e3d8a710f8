"""The joint graph of forward and backward as operators and values: what inductor would put into buffers, and in which
order."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any, Iterable

import torch
from torch import fx

from .cut import Cut
from .inductor import generates_code, partitioners

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
#: Results that are always buffers, whatever reads them.
_BUFFERS = {aten.cat, aten.index_put, aten.scatter, aten.scatter_add, aten.scatter_reduce, aten.cumsum}
#: Cost so much for an element that inductor makes their result a buffer where several kernels read it.
_HEAVY = {aten.exp, aten.erf, aten.sigmoid, aten.tanh, aten.log}
#: As inductor's `realize_reads_threshold`.
_MOST_READS = 4
#: Operators of torch itself: what they read and make is known. A custom operator may have a state, so its results are
#: kept.
_KNOWN = ("aten", "prims", "inductor_prims", "_inductor_test", "quantized", "mkldnn", "mkldnn_prepacked", "fbgemm")


def packet_of(node: fx.Node) -> Any:
    return getattr(node.target, "overloadpacket", node.target)


def first_input(node: fx.Node) -> fx.Node:
    found: Any = node.args[0]
    return found  # type: ignore[no-any-return]


def is_call(node: fx.Node) -> bool:
    return node.op == "call_function"


#: A value: the fx node that makes it, and 0 for the copy of forward, 1 for what backward makes. Backward makes anew
#: what torch does not think worth saving.
Key = tuple[fx.Node, int]


@dataclass
class JointOp:
    """One operator of the trace: the fx node that is run, the values that it makes, what it reads. What is inlined into
    it has no operator of its own."""

    node: fx.Node
    phase: int  #: 0: forward's operator; 1: backward's
    values: list[Key]
    reads: list[Key]  #: placeholders are not among them
    is_kept: bool = False  #: its values cannot be computed again
    is_random: bool = False


@dataclass
class Part:
    """An operand that inductor computes right into the result of a `cat`: no value, but a slice of one."""

    whole: Key
    dim: int
    begin: int
    end: int


@dataclass
class JointGraph:
    """@param module  its graph, after dead code and common subexpressions are gone."""

    module: fx.GraphModule
    cut: Cut
    ops: list[JointOp] = field(default_factory=list)
    values: list[Key] = field(default_factory=list)
    forward_ops: int = 0  #: of `ops`; those of backward follow
    index: dict[Key, int] = field(default_factory=dict)  #: of a value
    death: dict[Key, int] = field(default_factory=dict)  #: of a value: after its last reader
    kept: set[Key] = field(default_factory=set)  #: values that outlive the step, or must be saved
    overwrites: dict[Key, Key] = field(default_factory=dict)  #: results in the storage of what they are computed from
    part_of: dict[Key, Part] = field(default_factory=dict)  #: operands of `cat` in its result

    def __post_init__(self) -> None:
        self._types = partitioners().get_default_op_list()
        self._order = {node: place for place, node in enumerate(self.module.graph.nodes)}
        self._saved = {self.root(node) for node in self.cut.saved}
        self._materialized = self._find_materialized()
        makers = {self._producer(value) for value in self._materialized if self._is_forward(value)}
        self._forward = {value for value in self._materialized if self._producer(value) in makers}
        self._backward = (self._materialized - self._forward) | self._made_again()
        self._find_ops()
        self._find_lifetimes()
        if self._find_parts():
            self._find_ops()
            self._find_lifetimes()
        self._find_overwrites()

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
        return not self._types.is_fusible(node) and not generates_code(node)

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
        reads: dict[fx.Node, int] = {}
        for node in graph.nodes:
            if not is_call(node) or partitioners().is_sym_node(node):
                continue
            self._note(node, found, reads)
        return {node for node in found if is_call(node) and isinstance(node.meta.get("val"), torch.Tensor)}

    def _note(self, node: fx.Node, found: set[fx.Node], reads: dict[fx.Node, int]) -> None:
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
        if self.is_extern(node) or packet_of(node) in _REDUCTIONS | _BUFFERS or self.draws(node):
            found.add(node)
        root = self.root(node)
        if root is not node:
            reads[node] = reads.get(root, 1)
            return
        reads[node] = sum(
            1 if self.root(a) in found or a.op == "placeholder" else reads.get(a, 1) for a in node.all_input_nodes
        )
        readers = {user for user in node.users if not self.is_view(user)} | {
            w for user in node.users if self.is_view(user) for w in user.users
        }
        if len(readers) > 1 and node.all_input_nodes and (reads[node] > _MOST_READS or packet_of(node) in _HEAVY):
            found.add(node)

    def _is_forward(self, value: fx.Node) -> bool:
        """Whether forward makes it: what it needs, and what only backward reads though torch would save it."""
        node, info = self._producer(value), self.cut.info
        return bool(info.is_required_fw(node)) or (value in self._saved and node not in info.tangents_closure)

    def _is_made_anew(self, node: fx.Node) -> bool:
        """Whether backward computes it again anyway, as torch does not think it worth saving."""
        if node in self._saved or not self.cut.info.is_required_fw(node) or self._is_item(node):
            return False
        return not (self.is_extern(node) or packet_of(node) in _REDUCTIONS or self._cannot_repeat(node))

    def _made_again(self) -> set[fx.Node]:
        """Those of them that kernels of torch's own read in backward: they get buffers there, the others are
        inlined."""
        found = set()
        for node in self.module.graph.nodes:
            if self.is_extern(node) and not self.cut.info.is_required_fw(node):
                roots = {self.root(given) for given in node.all_input_nodes}
                found |= {root for root in roots if root in self._materialized and self._is_made_anew(root)}
        return found

    def value_read(self, node: fx.Node, phase: int) -> Key | None:
        """The value to read for a node; None: it is inlined."""
        if phase == 1 and node in self._backward:
            return node, 1
        if node in self._forward and not (phase == 1 and self._is_made_anew(node)):
            return node, 0
        part = self.part_read(node, phase)
        return part.whole if part is not None else None

    def part_read(self, node: fx.Node, phase: int) -> Part | None:
        """Where to read a node that is an operand in the result of a `cat`."""
        if phase == 1 and (node, 1) in self.part_of:
            return self.part_of[node, 1]
        return None if phase == 1 and self._is_made_anew(node) else self.part_of.get((node, 0))

    def inputs_of(self, node: fx.Node, phase: int) -> list[Key]:
        """Values that computing `node` reads, itself or by what is inlined."""
        found: dict[Key, None] = {}
        for one in self._walk(node, phase):
            value = self._read_by(node, one, phase)
            if value is not None:
                found[value] = None
        return list(found)

    def _read_by(self, node: fx.Node, one: fx.Node, phase: int) -> Key | None:
        """As `value_read`; what is written right into `node` is computed with it."""
        value = self.value_read(one, phase)
        return None if value is not None and value[0] is node else value

    def inlined_in(self, node: fx.Node, phase: int) -> Iterable[fx.Node]:
        """The nodes that are computed as part of it."""
        return (one for one in self._walk(node, phase) if self._read_by(node, one, phase) is None)

    def _walk(self, node: fx.Node, phase: int) -> Iterable[fx.Node]:
        stack, seen = list(node.all_input_nodes), set()
        while stack:
            one = stack.pop()
            if one in seen or not is_call(one):
                continue
            seen.add(one)
            yield one
            if self._read_by(node, one, phase) is None:
                stack.extend(one.all_input_nodes)

    def _producer(self, value: fx.Node) -> fx.Node:
        return first_input(value) if self._is_item(value) else value

    # ---- Operators

    def _op(self, node: fx.Node, values: list[fx.Node], phase: int) -> JointOp:
        kept = self._cannot_repeat(node) or any(self._cannot_repeat(one) for one in self.inlined_in(node, phase))
        reads = self.inputs_of(node, phase)
        return JointOp(node, phase, [(value, phase) for value in values], reads, kept, self.draws(node))

    def _find_ops(self) -> None:
        self.ops = []
        for phase, made in enumerate((self._forward, self._backward)):
            makes: dict[fx.Node, list[fx.Node]] = {}
            for value in sorted(made, key=self._order.__getitem__):
                makes.setdefault(self._producer(value), []).append(value)
            ops = [self._op(node, values, phase) for node, values in makes.items()]
            ops = self._forward_order(ops) if phase == 0 else self._backward_order(ops)
            self.ops += ops
            if phase == 0:
                self.forward_ops = len(ops)
        self.values = [value for op in self.ops for value in op.values]
        self.index = {value: number for number, value in enumerate(self.values)}

    def _forward_order(self, ops: list[JointOp]) -> list[JointOp]:
        """The joint graph's, but that what only backward reads comes right after what it is computed from."""
        place: dict[fx.Node, float] = {}
        for op in ops:
            place[op.node] = float(self._order[op.node])
            if not self.cut.info.is_required_fw(op.node):
                place[op.node] = max([place[self._producer(node)] for node, _ in op.reads] or [0.0]) + 0.5
        return sorted(ops, key=lambda op: place[op.node])

    def _backward_order(self, ops: list[JointOp]) -> list[JointOp]:
        """The joint graph's, but that what needs no gradient comes right before its first reader."""
        again = {value: op for op in ops for value in op.values if op.node not in self.cut.info.tangents_closure}
        ordered: dict[int, JointOp] = {}

        def place(op: JointOp) -> None:
            if id(op) not in ordered:
                for value in op.reads:
                    if value in again:
                        place(again[value])
                ordered[id(op)] = op

        for op in ops:
            if op.node in self.cut.info.tangents_closure:
                place(op)
        for op in ops:
            place(op)
        return list(ordered.values())

    # ---- Lifetimes

    def _find_lifetimes(self) -> None:
        end = len(self.ops)
        self.death, self.kept = {}, set()
        for place, op in enumerate(self.ops):
            for value in [*op.values, *op.reads]:
                self.death[value] = place + 1
        for phase, outputs in enumerate((self.cut.forward_outputs, self.cut.backward_outputs)):
            for out in outputs:
                if isinstance(out, fx.Node) and not self.mutates(out):
                    for value in self._sources(out, phase):
                        self.death[value] = end
                        self.kept.add(value)
        for node in self.module.graph.nodes:  # into an input, at the end of forward or backward
            if self.mutates(node):
                phase = int(partitioners()._must_be_in_backward(node))
                for given in node.all_input_nodes:
                    for value in self._sources(given, phase):
                        self.death[value] = max(self.death[value], end if phase == 1 else self.forward_ops)
                        self.kept.add(value)  # no operator of the trace reads it
        from torch.utils.checkpoint import CheckpointPolicy

        for value in self.values:
            if value[0].meta.get("recompute") is CheckpointPolicy.MUST_SAVE or self._is_inlined_when_made_again(
                value[0]
            ):
                self.kept.add(value)

    def _find_parts(self) -> bool:
        """Operands of `cat` that inductor's own code makes, and that nobody reads before it: they are computed with it,
        and read from it. Where a kernel of torch's own reads one, that fixes its layout, and it is copied.

        @return  whether there are any
        """
        first: dict[Key, int] = {}
        made = {value: op for op in self.ops for value in op.values}
        by_extern = set()
        for place, op in enumerate(self.ops):
            for value in op.reads:
                first.setdefault(value, place)
            if self.is_extern(op.node):
                by_extern.update(op.reads)
        for place, op in enumerate(self.ops):
            if packet_of(op.node) is not aten.cat:
                continue
            for given, dim, begin, end in _pieces(op.node):
                value = given, op.phase
                if value not in made or value in self.part_of or value in self.kept or value in by_extern:
                    continue
                is_computed = not (self._is_item(given) or self.is_extern(given) or packet_of(given) in _BUFFERS)
                if is_computed and not made[value].is_kept and first[value] == place:
                    self.part_of[value] = Part(op.values[0], dim, begin, end)
        for node, phase in self.part_of:
            (self._forward, self._backward)[phase].discard(node)
        return bool(self.part_of)

    def _is_inlined_when_made_again(self, node: fx.Node) -> bool:
        """Offsets of a pooling: inductor would compute them in their readers, and keep what was pooled for that. They
        are a byte each."""
        if not self._is_item(node) or node.args[1] != 1:
            return False
        return str(packet_of(first_input(node))).endswith("max_pool_with_offsets")

    def _sources(self, node: fx.Node, phase: int) -> list[Key]:
        """The values that a node is a view of, or is computed from if it is inlined."""
        root = self.value_read(self.root(node), phase)
        return [root] if root is not None else self.inputs_of(node, phase)

    def _find_overwrites(self) -> None:
        """Where inductor writes a result over an operand: same shape and layout, and nobody reads that again."""
        birth = {value: place for place, op in enumerate(self.ops) for value in op.values}
        for place, op in enumerate(self.ops):
            if self.is_extern(op.node) or len(op.values) != 1 or packet_of(op.node) in _REDUCTIONS:
                continue
            made = op.values[0]
            for value in op.reads:
                is_last = self.death[value] == place + 1 and value not in self.kept and birth[value] < place
                if is_last and _same_layout(value[0], made[0]) and self._reads_alike(op.node, value, op.phase):
                    self.overwrites[made] = value
                    break

    def _reads_alike(self, node: fx.Node, value: Key, phase: int) -> bool:
        """Whether `node` reads each element of it where it writes that element: through no view."""
        stack, seen = [node], set()
        while stack:
            one = stack.pop()
            for given in one.all_input_nodes:
                read = self._read_by(node, given, phase)
                if read == value and given is not value[0]:
                    return False  # a slice of it
                if given in seen or not is_call(given) or read is not None:
                    continue
                seen.add(given)
                if self.root(given) is not given and self.value_read(self.root(given), phase) == value:
                    return False
                stack.append(given)
        return True

    # ---- The trace

    def _copied_inputs(self) -> list[int]:
        """Bytes, at the start of each operator, of inputs that were copied to channels last: from the first convolution
        that reads one to the last."""
        held = [0] * len(self.ops)
        if not self.cut.channels_last:
            return held
        readers: dict[fx.Node, list[int]] = {}
        for place, op in enumerate(self.ops):
            if packet_of(op.node) in (aten.convolution, aten.convolution_backward):
                for given in op.node.all_input_nodes:
                    if given.op == "placeholder" and _needs_copy(given.meta.get("val")):
                        readers.setdefault(given, []).append(place)
        for given, places in readers.items():
            for place in range(places[0] + 1, places[-1] + 1):
                held[place] += partitioners()._size_of(given)
        return held

    def lifetime(self, value: Key) -> dict[str, Any]:
        """Of a value of the trace: where it dies, and what it overwrites."""
        lifetime = {"death": self.death[value]}
        if value in self.overwrites:
            lifetime["overwrites"] = self.index[self.overwrites[value]]
        return lifetime

    def trace(self, cost_of: Any, model: str) -> dict[str, Any]:
        """As a graph of src/graph/json.h. @param cost_of  of an operator: nanoseconds of a run, bytes of its
        workspace."""
        size = partitioners()._size_of
        fixed = {value for op in self.ops if op.is_kept for value in op.values} | self.kept
        values = []
        for value in self.values:
            one = {"bytes": size(value[0]), **self.lifetime(value)}
            if value[1] == 0 and value not in fixed:
                one["evictable"] = True
            values.append(one)
        ops: list[dict[str, Any]] = []
        outside = self._copied_inputs()
        for place, op in enumerate(self.ops):
            ns, workspace = cost_of(self, op)
            one = {"name": str(packet_of(op.node)), "scope": op.node.name, "ns": ns, "workspace": workspace}
            one["inputs"] = sorted({self.index[value] for value in op.reads})
            one["outputs"] = [self.index[value] for value in op.values]
            if op.phase == 1:
                one["backward"] = True
            if op.phase == 1 or op.is_kept:
                one["once"] = True
            if op.is_random:
                one["random"] = True
            if outside[place]:
                one["outside"] = outside[place]
            ops.append(one)
        return {"kind": "graph", "version": 1, "model": model, "ops": ops, "values": values}


def _same_layout(one: fx.Node, other: fx.Node) -> bool:
    a, b = one.meta["val"], other.meta["val"]
    return bool(
        a.dtype == b.dtype and tuple(a.shape) == tuple(b.shape) and a.stride() == b.stride() and a.device == b.device
    )


def _pieces(cat: fx.Node) -> list[tuple[fx.Node, int, int, int]]:
    """Its operands, each with the dimension and where in the result it begins and ends. None where sizes are symbols,
    or where inductor copies all of them."""
    operands: Any = cat.args[0]
    given_dim: Any = cat.args[1] if len(cat.args) > 1 else cat.kwargs.get("dim", 0)
    val, vals = cat.meta["val"], [given.meta["val"] for given in operands]
    is_known = all(isinstance(size, int) for one in (val, *vals) for size in one.shape)
    is_like = all(one.dim() == val.dim() and one.dtype == val.dtype for one in vals)
    if len(operands) < 2 or not is_known or not is_like or val.dtype in (torch.int8, torch.uint8):
        return []
    dim, pieces, begin = int(given_dim) % val.dim(), [], 0
    for given, one in zip(operands, vals):
        pieces.append((given, dim, begin, begin + one.shape[dim]))
        begin += one.shape[dim]
    return pieces


def _needs_copy(value: Any) -> bool:
    if not isinstance(value, torch.Tensor) or value.dim() not in (4, 5):
        return False
    last = torch.channels_last if value.dim() == 4 else torch.channels_last_3d
    return not value.is_contiguous(memory_format=last)
