"""Compares what TensorFlow's partitioner did with the plan.

With Grappler off every operator and every transfer of the plan has its counterpart, so both are
compared one to one. With Grappler on some operators are merged, folded or renamed: those that
still bear their names must be on their devices, no pair of devices may see more transfers than
planned, and no weights may move that the plan leaves in place.

An order is kept if the later operator's node depends on the earlier one's inside its partition:
then no executor can start it before. What became part of a kernel is looked for in that kernel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from moirai_tf.cluster.cluster import task_of
from moirai_tf.model.validate import input_node
from moirai_tf.rewrite.plan import Plan, Precedence
from moirai_tf.verify.names import Names
from moirai_tf.verify.partition import PartitionedGraph, Send, device_name
from moirai_tf.verify.report import ORDER, PLACEMENT, TRANSFER, WEIGHTS, Finding, RunProof

_Transfer = tuple[str, int, str, str]
"""(producer, port or -1, source device, target device)."""


@dataclass(frozen=True)
class Evidence:
    """What one run of the placed model left behind."""

    run: str
    """How the run is called in reports."""
    graph: PartitionedGraph
    executed: Mapping[str, frozenset[str]]
    """Node -> devices (of the run) that ran it, from step statistics; may be empty."""
    devices: Mapping[str, str]
    """Device of the run, as `device_key` has it -> device of the plan."""


def prove(evidence: Evidence, plan: Plan, *, grappler: bool) -> tuple[RunProof, list[Finding]]:
    """Proves one run, or says what is not as planned.

    Args:
      evidence: partition graphs and step statistics of the run.
      plan: what should have happened.
      grappler: whether Grappler changed the graph before it was partitioned.
    """
    graph = evidence.graph
    proved, executed, findings = _operators(evidence, grappler=grappler)
    findings += _untold(evidence, proved)
    crossing = _crossing(graph.sends)
    sends = [s for s in crossing if not s.control and (grappler or not s.unused)]
    own = [s for s in sends if s.origin.operator not in graph.names.captured]
    planned = _planned(graph, plan)
    data = _between_servers(_once(own), graph.names.placement, planned)
    seen = Counter(map(_key, data))
    replicated = _replicated(graph, planned)
    kept = _kept(graph, planned, plan.client)
    if grappler:
        findings += _more_than_planned(evidence.run, data, planned)
    else:
        findings += _missing(evidence.run, (planned - seen).keys() - replicated - kept)
        findings += _unplanned(evidence.run, data, planned)
    findings += _weights(evidence.run, data, planned)
    ordered, disorder = prove_order(evidence.run, graph, plan.order)
    findings += disorder
    proof = RunProof(
        run=evidence.run,
        operators=len(proved),
        executed=len(executed),
        planned=planned.total(),
        transfers=len(data),
        captured=len(sends) - len(own),
        repeated=len(own) - len(data),
        replicated=len(replicated - seen.keys()),
        kept=len(kept - seen.keys()),
        unused=sum(s.unused and not s.control for s in crossing),
        control=sum(s.control for s in crossing),
        planned_weights=sum(s.weights and _key(s) in planned for s in data),
        ordered=ordered,
        within=len(graph.sends) - len(crossing),
    )
    return proof, findings


def _crossing(sends: Sequence[Send]) -> list[Send]:
    """Sends between devices, each tensor once although a GPU may want it in host memory too."""
    to_devices = {(s.control, _key(s)) for s in sends if not s.on_host}
    return [
        send
        for send in sends
        if send.source != send.target
        and not (send.on_host and (send.control, _key(send)) in to_devices)
    ]


def _operators(evidence: Evidence, *, grappler: bool) -> tuple[set[str], set[str], list[Finding]]:
    """Operators proved on their devices, those that statistics show there, and what is wrong."""
    graph, names = evidence.graph, evidence.graph.names
    seen: set[str] = set()
    executed: set[str] = set()
    wrong: dict[str, tuple[str, str]] = {}
    for node, operator in graph.operators():
        seen.add(operator)
        planned = names.placement[operator]
        if names.replicated(node) or operator in names.captured:
            continue
        if graph.device(node) != planned:
            renamed = "" if node.op == names.op(operator) else f" as {node.op}"
            wrong.setdefault(
                operator, (f"runs on {graph.device(node)}{renamed}", graph.device(node))
            )
        ran = {device_name(d, evidence.devices) for d in evidence.executed.get(node.name, ())}
        if planned in ran:
            executed.add(operator)
        elif ran:
            wrong.setdefault(operator, (f"ran on {', '.join(sorted(ran))}", min(ran)))
    seen |= _merged(graph, names.expected - seen)
    if not grappler:
        wrong.update(dict.fromkeys(sorted(names.expected - seen), ("does not run", "")))
    findings = [
        Finding(
            PLACEMENT,
            f"{evidence.run}: operator {name!r} ({names.op(name)}) {what}, "
            f"planned on {names.placement[name]}",
            (name,),
            device,
        )
        for name, (what, device) in wrong.items()
    ]
    proved = (seen & names.expected) - names.captured - wrong.keys()
    return proved, proved & executed, findings


def _untold(evidence: Evidence, proved: Iterable[str]) -> Iterator[Finding]:
    """Devices without step statistics, in a run where others have them."""
    placement = evidence.graph.names.placement
    told = {device_name(d, evidence.devices) for found in evidence.executed.values() for d in found}
    for device in sorted({placement[name] for name in proved} - told) if told else ():
        here = tuple(sorted(name for name in proved if placement[name] == device))
        text = f"{evidence.run}: {device} does not tell that it ran anything, such as {here[0]!r}"
        yield Finding(PLACEMENT, text, here)


def _merged(graph: PartitionedGraph, missing: Set[str]) -> set[str]:
    """Operators that run inside a reader on their device.

    After partitioning oneDNN merges `Conv2D` and `BiasAdd` into `_MklNativeConv2DWithBias`, which
    bears the name of the `BiasAdd`. The inliner of a Session puts a constant that a call reads into
    a copy of the function, if the call stays (`SpecializeFunction` in function_optimizer.cc).
    """
    names = graph.names
    return {
        source
        for node, operator in graph.operators()
        if operator in names.nodes and (node.op.startswith("_Mkl") or node.op in names.calls)
        for source in names.sources(operator)
        if source in missing
        and (names.op(source) == "Const" if node.op in names.calls else names.op(source) in node.op)
        and graph.device(node) == names.placement[source]
    }


def _once(sends: Sequence[Send]) -> list[Send]:
    """Without those that carry the same tensor once more, as the argument of another call.

    TensorFlow gives every argument of an inlined call an `Identity`, on the device that its tensor
    comes from. Where two calls elsewhere read one tensor it crosses for each, until Grappler takes
    the `Identity`s away.
    """
    first = {(send.tensor, send.source, send.target): send.sent for send in reversed(sends)}
    return [s for s in sends if first[s.tensor, s.source, s.target] == s.sent]


def _between_servers(
    sends: Sequence[Send], placement: Mapping[str, str], planned: Counter[_Transfer]
) -> list[Send]:
    """Sends that pass a tensor on within a server count as sent to it by the tensor's own device.

    A master divides the graph by server, a server its part by device: what several devices of
    another server read arrives at one of them, and the others have it from there.
    """

    def counted(send: Send) -> Send:
        producer, port, source, target = _key(send)
        home = placement.get(producer, source)
        within = task_of(source) == task_of(target) != task_of(home)
        passed_on = within and (producer, port, home, source) in planned
        return replace(send, source=home) if passed_on else send

    return [counted(send) for send in sends]


def _key(send: Send) -> _Transfer:
    return (send.origin.operator or send.origin.node, send.origin.port, send.source, send.target)


def _planned(graph: PartitionedGraph, plan: Plan) -> Counter[_Transfer]:
    """The plan's data transfers; outputs of loops and branches are counted, not told apart.

    Without those of constants that the loader keeps with the client: they start elsewhere.
    """
    names = graph.names
    return Counter(
        (t.producer, -1 if t.producer in names.divided else t.port, t.source, t.target)
        for t in plan.transfers
        if t.port >= 0 and t.producer not in names.captured
    )


def _replicated(graph: PartitionedGraph, planned: Iterable[_Transfer]) -> set[_Transfer]:
    """Planned transfers of small constants that TensorFlow copied to the device instead."""
    names = graph.names
    copies = {
        (operator, graph.device(node))
        for node, operator in graph.operators()
        if names.replicated(node)
    }
    return {t for t in planned if (t[0], t[3]) in copies}


def _kept(graph: PartitionedGraph, planned: Iterable[_Transfer], client: str) -> set[_Transfer]:
    """Planned transfers of results to the client: the TF2 loader leaves results in place."""
    if graph.names.arguments is None:
        return set()
    results = {(origin.operator, origin.port) for origin in graph.results()}
    return {t for t in planned if t[3] == client and t[:2] in results}


def _missing(run: str, transfers: Iterable[_Transfer]) -> Iterator[Finding]:
    for transfer in sorted(transfers):
        text = f"{run}: {_shown(transfer)} is planned but does not happen"
        yield Finding(TRANSFER, text, (transfer[0],))


def _unplanned(run: str, sends: Sequence[Send], planned: Counter[_Transfer]) -> Iterator[Finding]:
    for transfer in sorted((Counter(map(_key, sends)) - planned).keys()):
        readers = sorted({r for s in sends if _key(s) == transfer for r in s.readers})
        what = "is not planned" if transfer not in planned else "happens more often than planned"
        yield Finding(
            TRANSFER,
            f"{run}: {_shown(transfer)} {what}; read by {', '.join(map(repr, readers))}",
            (transfer[0], *readers),
            transfer[2],
        )


def _more_than_planned(
    run: str, sends: Sequence[Send], planned: Counter[_Transfer]
) -> Iterator[Finding]:
    """Pairs of devices between which Grappler left more transfers than planned."""
    happened = Counter((s.source, s.target) for s in sends)
    foreseen = Counter(t[2:] for t in planned.elements())
    for source, target in sorted((happened - foreseen).keys()):
        here = {_key(s)[0] for s in sends if (s.source, s.target) == (source, target)}
        new = sorted(here - {t[0] for t in planned if t[2:] == (source, target)})
        yield Finding(
            TRANSFER,
            f"{run}: {happened[source, target]} transfers from {source} to {target}, planned are "
            f"{foreseen[source, target]}; not planned: {', '.join(map(repr, new))}",
            tuple(new),
            target,
        )


def _weights(run: str, sends: Sequence[Send], planned: Counter[_Transfer]) -> Iterator[Finding]:
    """Weights that cross devices at every inference and that the plan leaves in place."""
    for send in sends:
        if send.weights and _key(send) not in planned:
            readers = ", ".join(map(repr, send.readers))
            yield Finding(
                WEIGHTS,
                f"{run}: weights move at every inference: {_shown(_key(send))}; read by {readers}",
                (_key(send)[0], *send.readers),
                send.source,
            )


def _shown(transfer: _Transfer) -> str:
    producer, port, source, target = transfer
    number = f":{port}" if port > 0 else ""
    return f"the transfer of {producer + number!r} from {source} to {target}"


def prove_order(
    run: str, graph: PartitionedGraph, order: Sequence[Precedence]
) -> tuple[int, list[Finding]]:
    """How many precedences of a plan a run's graphs enforce, and those that they do not.

    A precedence of operators that are not there any more is in neither: of two that compute the
    same, Grappler keeps one.
    """
    nodes = Kernels(graph.nodes, graph.names)
    kept = 0
    findings: list[Finding] = []
    for pair in order:
        one, two = nodes.holding(pair.before), nodes.holding(pair.after)
        if not one or not two:
            continue
        if one & two or _depends(graph.nodes, two, one):
            kept += 1
            continue
        findings.append(
            Finding(
                ORDER,
                f"{run}: operator {pair.after!r} does not wait for {pair.before!r}, "
                "as the plan's order says",
                (pair.before, pair.after),
            )
        )
    return kept, findings


_CONTRACTIONS = frozenset({
    "Conv2D", "Conv3D", "DepthwiseConv2dNative", "MatMul", "BatchMatMul", "BatchMatMulV2",
})  # fmt: skip
"""Ops that give their names to the kernels that they are fused into; these are named as the last of
their operators."""


class Kernels:
    """The node that each operator is, or became a part of."""

    def __init__(self, nodes: Mapping[str, Any], names: Names) -> None:
        self._nodes = nodes
        self._names = names
        self._readers: dict[str, list[str]] = {}
        """Operator -> those that read it in its own function."""
        for operator in names.placement:
            for source in names.sources(operator) if operator in names.nodes else ():
                self._readers.setdefault(source, []).append(operator)

    def holding(self, operator: str) -> set[str]:
        """An operator's node, or the kernel of a contraction; all nodes of a divided one."""
        if operator in self._names.divided:
            return {n.name for n in self._nodes.values() if self._names.operator(n) == operator}
        name = operator.removeprefix(self._names.prefix)
        if name in self._nodes:
            return {name}
        op = self._names.op(operator)
        while op in _CONTRACTIONS and len(readers := self._readers.get(operator, [])) == 1:
            operator = readers[0]
            node = self._nodes.get(operator.removeprefix(self._names.prefix))
            if node is not None:
                return {str(node.name)} if node.op.startswith("_") and op in node.op else set()
            if self._names.op(operator) in _CONTRACTIONS:
                break
        return set()


def _depends(nodes: Mapping[str, Any], targets: set[str], sources: set[str]) -> bool:
    """Whether any target depends on any source; nodes of a loop depend on one another."""
    pending, seen = list(targets), set(targets)
    for name in pending:
        new = {input_node(text) for text in nodes[name].input} - seen
        if new & sources:
            return True
        seen |= new
        pending.extend(new)
    return False
