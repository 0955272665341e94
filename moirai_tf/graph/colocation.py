"""Which operators must share a device, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from moirai_tf.graph.calls import compiled
from moirai_tf.graph.graph import CALL_OPS, CLIENT_OPS, LOWERED_OPS, ColocationGroup, Operator
from moirai_tf.model.op_types import attr_of

_SHARED_NAME_OPS = frozenset({"VarHandleOp", "HashTableV2", "MutableHashTableV2", "VariableV2"})
_LOOP_OPS = frozenset({"Enter", "RefEnter"})


def colocation_groups(operators: Sequence[Operator]) -> tuple[ColocationGroup, ...]:
    """Groups from resource handles, reference edges, `_class`, shared names and loops."""
    union = _Union(len(operators))
    for a, b, reason in _pairs(operators):
        union.join(a, b, reason)
    return union.groups()


def _pairs(operators: Sequence[Operator]) -> Iterator[tuple[int, int, str]]:
    index = {o.name: i for i, o in enumerate(operators)}
    yield from _handles(operators)
    yield from _classes(operators, index)
    yield from _shared_names(operators)
    yield from _loops(operators)
    yield from _control_flow(operators)
    yield from _call_constants(operators)


def _handles(operators: Sequence[Operator]) -> Iterator[tuple[int, int, str]]:
    for i, operator in enumerate(operators):
        for ref in operator.inputs:
            outputs = operators[ref.producer].outputs
            dtype = outputs[ref.port].dtype if ref.port < len(outputs) else ""
            if dtype == "resource" or dtype.endswith("_ref"):
                kind = "resource" if dtype == "resource" else "reference"
                yield ref.producer, i, f"{kind} {operators[ref.producer].name}"


def _classes(
    operators: Sequence[Operator], index: Mapping[str, int]
) -> Iterator[tuple[int, int, str]]:
    for i, operator in enumerate(operators):
        classes = operator.attr("_class")
        for raw in classes.list.s if classes is not None else ():
            text = raw.decode(errors="replace")
            other = index.get(operator.scope.prefix + text.removeprefix("loc:@"))
            if text.startswith("loc:@") and other is not None and other != i:
                yield other, i, text


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


def _control_flow(operators: Sequence[Operator]) -> Iterator[tuple[int, int, str]]:
    """A loop or branch and what feeds it.

    When TensorFlow lowers `While` to `Enter`, `Merge` and `Switch`, it puts these nodes on the
    device that the loop variable's source asks for, not on the loop's; elsewhere, every iteration
    would cross devices. A source that asks for none ends on the default device, the client's.
    """
    client = next((i for i, o in enumerate(operators) if o.op in CLIENT_OPS), None)
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


def _outer_frames(operator: Operator, frames: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The innermost frame among a node's inputs: all of them, but for loop entrances, agree."""
    sources = (*(ref.producer for ref in operator.inputs), *operator.controls)
    return max((frames[s] for s in sources), key=len, default=())


class _Union:
    """Disjoint sets that remember why they were joined."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))
        self._reasons: dict[int, list[str]] = {}

    def find(self, i: int) -> int:
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = self._parent[i]
        return i

    def join(self, a: int, b: int, reason: str) -> None:
        root, other = sorted((self.find(a), self.find(b)))
        self._parent[other] = root
        merged = [*self._reasons.pop(root, ()), *self._reasons.pop(other, ()), reason]
        self._reasons[root] = list(dict.fromkeys(merged)) if other != root else merged[:]

    def groups(self) -> tuple[ColocationGroup, ...]:
        members: dict[int, list[int]] = {}
        for i in range(len(self._parent)):
            members.setdefault(self.find(i), []).append(i)
        return tuple(
            ColocationGroup(tuple(group), _summary(self._reasons[root]))
            for root, group in members.items()
            if len(group) > 1
        )


def _summary(reasons: Sequence[str], most: int = 3) -> str:
    distinct = list(dict.fromkeys(reasons))
    more = f" and {len(distinct) - most} more" if len(distinct) > most else ""
    return "; ".join(distinct[:most]) + more
