"""Which operators must share a device, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from moirai_tf.graph.calls import compiled
from moirai_tf.graph.graph import CALL_OPS, CLIENT_OPS, LOWERED_OPS, ColocationGroup, Operator
from moirai_tf.model.op_types import attr_of
from moirai_tf.model.validate import function_attrs

_SHARED_NAME_OPS = frozenset({"VarHandleOp", "HashTableV2", "MutableHashTableV2", "VariableV2"})
_HANDLES = frozenset({"resource", "variant", "reference"})
_LOOP_OPS = frozenset({"Enter", "RefEnter"})
_SWITCH_OPS = frozenset({"Switch", "RefSwitch"})
_COMPILE = "_XlaMustCompile"
_NEAR = "loc:@"
"""Before a name in `_class`: the node wants to be on the device of the node of that name."""


def colocation_groups(
    operators: Sequence[Operator],
    arguments: Sequence[Mapping[str, int]],
    functions: Mapping[str, Any],
) -> tuple[ColocationGroup, ...]:
    """Groups from handles of state, `_class`, shared names, control flow and compiled functions.

    Args:
      operators: of the flat graph, in topological order.
      arguments: for each operator, the arguments of its function that its `_class` names, each with
        the operator that it comes from.
      functions: function name -> `FunctionDef`.
    """
    union = Union(len(operators))
    for a, b, reason in _pairs(operators, arguments, functions):
        union.join(a, b, reason)
    return union.groups()


def class_names(node: Any) -> list[str]:
    """The names in a node's `_class`, without their `loc:@`."""
    texts = [raw.decode(errors="replace") for raw in attr_of(node, "_class").list.s]
    return [text.removeprefix(_NEAR) for text in texts if text.startswith(_NEAR)]


def _pairs(
    operators: Sequence[Operator],
    arguments: Sequence[Mapping[str, int]],
    functions: Mapping[str, Any],
) -> Iterator[tuple[int, int, str]]:
    index = {o.name: i for i, o in enumerate(operators)}
    yield from _handles(operators)
    yield from _classes(operators, index, arguments)
    yield from _shared_names(operators)
    yield from _loops(operators)
    yield from _switches(operators)
    yield from _control_flow(operators)
    yield from _call_constants(operators)
    yield from _compiled(operators, functions)


def _handles(operators: Sequence[Operator]) -> Iterator[tuple[int, int, str]]:
    """What is not data but stands for it: it stays on one device, and so do its readers.

    TensorFlow's placer moves the readers of resources and references, and datasets that read
    datasets, to their source whatever their device. Other variants (lists of tensors, optional
    values) it would copy, all that they hold at once, if it has a way to copy such a one at all.
    """
    for i, operator in enumerate(operators):
        for ref in operator.inputs:
            outputs = operators[ref.producer].outputs
            dtype = outputs[ref.port].dtype if ref.port < len(outputs) else ""
            kind = "reference" if dtype.endswith("_ref") else dtype
            if kind in _HANDLES:
                yield ref.producer, i, f"{kind} {operators[ref.producer].name}"


def _classes(
    operators: Sequence[Operator],
    index: Mapping[str, int],
    arguments: Sequence[Mapping[str, int]],
) -> Iterator[tuple[int, int, str]]:
    """What asks to be near a node of its function, an argument of it, or something else.

    An argument means the operator that it comes from. A name that no operator has (a call's, say,
    or one of nothing at all) still binds all that bear it to one another, and to the operator of
    that name where the call ends up. In both cases Python's loaders take the node's device away,
    so that it gets its call's, which is the client's.
    """
    client = _client(operators)
    for i, operator in enumerate(operators):
        for name in class_names(operator.node):
            others = [index.get(operator.scope.prefix + name)]
            if others == [None]:
                argument = arguments[i].get(name)
                elsewhere = (index.get(place + name) for place in _places(operator))
                others = [client, *([argument] if argument is not None else elsewhere)]
            yield from ((o, i, f"{_NEAR}{name}") for o in others if o is not None and o != i)


def _places(operator: Operator) -> Iterator[str]:
    """What comes before the names of the graph that all calls end up in: a Session's, and TF2's."""
    yield ""
    scope = operator.scope
    while scope.parent is not None and scope.parent.function:
        scope = scope.parent
    yield scope.prefix


def _shared_names(operators: Sequence[Operator]) -> Iterator[tuple[int, int, str]]:
    """Handles of one shared name are one resource, which lives on one device."""
    first: dict[tuple[str, str, str], int] = {}
    for i, operator in enumerate(operators):
        if operator.op not in _SHARED_NAME_OPS:
            continue
        name = attr_of(operator.node, "shared_name").s.decode(errors="replace")
        container = attr_of(operator.node, "container").s.decode(errors="replace")
        owner = first.setdefault((operator.op, container, name or operator.name), i)
        if owner != i:
            yield owner, i, f"shared name {name}"


def _loops(operators: Sequence[Operator]) -> Iterator[tuple[int, int, str]]:
    """A TF1 loop: everything between `Enter` and `Exit`, nested loops included."""
    frames: list[tuple[int, ...]] = []
    entrances: dict[str, int] = {}
    for i, operator in enumerate(operators):
        inside = _outer_frames(operator, frames)
        if operator.op in _LOOP_OPS:
            frame = operator.scope.prefix + attr_of(operator.node, "frame_name").s.decode()
            inside = (*inside, entrances.setdefault(frame, i))
        frames.append(inside[:-1] if operator.op in ("Exit", "RefExit") else inside)
        if inside and inside[0] != i:
            yield inside[0], i, f"loop of {operators[inside[0]].name}"


def _switches(operators: Sequence[Operator]) -> Iterator[tuple[int, int, str]]:
    """A TF1 switch is where its data comes from: the partitioner moves it there."""
    for i, operator in enumerate(operators):
        if operator.op in _SWITCH_OPS and operator.inputs:
            yield operator.inputs[0].producer, i, f"data of {operator.op} {operator.name}"


def _client(operators: Sequence[Operator]) -> int | None:
    return next((i for i, o in enumerate(operators) if o.op in CLIENT_OPS), None)


def _control_flow(operators: Sequence[Operator]) -> Iterator[tuple[int, int, str]]:
    """A loop or branch and what feeds it.

    When TensorFlow lowers `While` to `Enter`, `Merge` and `Switch`, it puts these nodes on the
    device that the loop variable's source asks for, not on the loop's; elsewhere, every iteration
    would cross devices. A source that asks for none ends on the default device, the client's.
    """
    client = _client(operators)
    for i, operator in enumerate(operators):
        if operator.op not in LOWERED_OPS:
            continue
        for position, ref in enumerate(operator.inputs):
            if operators[ref.producer].outputs[ref.port].dtype == "resource":
                continue
            yield ref.producer, i, f"inputs of {operator.op} {operator.name}"
            if position in operator.loose_inputs and client is not None:
                what = f"{operator.op} {operator.name}"
                yield client, i, f"{what} reads a call's result or a feed directly"


def _call_constants(operators: Sequence[Operator]) -> Iterator[tuple[int, int, str]]:
    """A call that is not inlined and the constants that it reads.

    The inliner of a Session puts them into a copy of the function (`SpecializeFunction` in
    grappler/optimizers/function_optimizer.cc), unless XLA compiles it.
    """
    for i, operator in enumerate(operators):
        if operator.op not in CALL_OPS or compiled(operator.node):
            continue
        for ref in operator.inputs:
            source = operators[ref.producer]
            if source.op == "Const" and source.scope is operator.scope:
                yield ref.producer, i, f"constants of {operator.op} {operator.name}"


def _compiled(
    operators: Sequence[Operator], functions: Mapping[str, Any]
) -> Iterator[tuple[int, int, str]]:
    """Compiled functions that read variables stay with the client.

    XLA refuses variables of other devices. A loader that does not know of the plan
    (`tf.saved_model.load` without options) puts all variables on the default device.
    """
    client = _client(operators)
    for i, operator in enumerate(operators):
        reads = any(
            operators[r.producer].outputs[r.port].dtype == "resource" for r in operator.inputs
        )
        if reads and client is not None and _compiles(operator.node, functions, set()):
            yield client, i, f"variables of the compiled function of {operator.name}"


def _compiles(node: Any, functions: Mapping[str, Any], seen: set[str]) -> bool:
    """Whether XLA compiles what a node calls, or anything in there."""
    called = {node.op, *(function.name for _, _, function in function_attrs(node))} - seen
    bodies = [functions[name] for name in sorted(called) if name in functions]
    seen |= called
    return any(attr_of(holder, _COMPILE).b for holder in (node, *bodies)) or any(
        _compiles(inner, functions, seen) for body in bodies for inner in body.node_def
    )


def _outer_frames(operator: Operator, frames: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The innermost frame among a node's inputs: all of them, but for loop entrances, agree."""
    sources = (*(ref.producer for ref in operator.inputs), *operator.controls)
    return max((frames[s] for s in sources), key=len, default=())


class Union:
    """Disjoint sets of operators that remember why they were joined."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))
        self._reasons: dict[int, dict[str, None]] = {}

    def find(self, i: int) -> int:
        """The smallest operator of a set."""
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = self._parent[i]
        return i

    def join(self, a: int, b: int, reason: str) -> None:
        """Makes two sets one."""
        root, other = sorted((self.find(a), self.find(b)))
        self._parent[other] = root
        reasons = self._reasons.setdefault(root, {})
        if other != root:
            reasons.update(self._reasons.pop(other, {}))
        reasons[reason] = None

    def groups(self) -> tuple[ColocationGroup, ...]:
        """All sets of two operators or more."""
        members: dict[int, list[int]] = {}
        for i in range(len(self._parent)):
            members.setdefault(self.find(i), []).append(i)
        return tuple(
            ColocationGroup(tuple(group), _summary(self._reasons[root]))
            for root, group in members.items()
            if len(group) > 1
        )


def _summary(reasons: Iterable[str], most: int = 3) -> str:
    shown = list(reasons)
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return "; ".join(shown[:most]) + more
