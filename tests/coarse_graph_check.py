"""Checks a coarse graph against the fine one; shares no code with what makes coarse graphs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moirai_tf.fusion.coarse import CoarseGraph, CoarseTensor, Expansion, FusedOperator
from moirai_tf.graph.graph import CLIENT_OPS, TensorRef


def violations(coarse: CoarseGraph, expansion: Expansion | None = None) -> tuple[str, ...]:
    """Every broken invariant as a sentence; never raises.

    Checked are: each operator in exactly one fused operator, feeds and fetches in one of their own,
    names, device types, topological order and with it the absence of cycles, one tensor for every
    dependency and no other, colocation, and that variables stay with their readers. With an
    expansion, also that it leads back.
    """
    found = list(_partition(coarse))
    if found:
        return tuple(found)  # Everything else needs to know where an operator went.
    checked = _Checked(coarse, _owners(coarse))
    found.extend(checked.operators())
    found.extend(checked.order())
    found.extend(checked.tensors())
    found.extend(checked.colocation())
    found.extend(checked.weights())
    if expansion is not None:
        found.extend(checked.expansion(expansion))
    return tuple(found)


def _partition(coarse: CoarseGraph) -> Iterator[str]:
    fine = coarse.fine.operators
    owners: list[list[str]] = [[] for _ in fine]
    for fused in coarse.operators:
        if not fused.members or list(fused.members) != sorted(set(fused.members)):
            yield f"{fused.name}: members {list(fused.members)} are not ascending, or none"
        for member in fused.members:
            if 0 <= member < len(fine):
                owners[member].append(fused.name)
            else:
                yield f"{fused.name}: member {member} is no operator of the fine graph"
    for operator, where in zip(fine, owners, strict=True):
        if len(where) != 1:
            yield f"{operator.name} is in {len(where)} fused operators: {', '.join(where) or '-'}"


def _owners(coarse: CoarseGraph) -> list[int]:
    owner = [0] * len(coarse.fine)
    for k, fused in enumerate(coarse.operators):
        for member in fused.members:
            owner[member] = k
    return owner


@dataclass(frozen=True, slots=True)
class _Checked:
    """A coarse graph that is a partition of the fine one."""

    coarse: CoarseGraph
    owner: list[int]

    def operators(self) -> Iterator[str]:
        fine = self.coarse.fine.operators
        seen: set[str] = set()
        for fused in self.coarse.operators:
            members = [fine[m] for m in fused.members]
            if fused.name in seen:
                yield f"{fused.name}: two fused operators have this name"
            seen.add(fused.name)
            if fused.name not in {m.name for m in members}:
                yield f"{fused.name}: none of its members has its name"
            if bool(fused.rule) != (len(members) > 1):
                yield f"{fused.name}: {len(members)} members, made by {fused.rule or 'no rule'!r}"
            if len(members) > 1 and any(m.op in CLIENT_OPS for m in members):
                yield f"{fused.name}: a feed or fetch of the client is fused with other operators"
            common = set(members[0].device_types).intersection(*(m.device_types for m in members))
            if set(fused.device_types) != common:
                yield (
                    f"{fused.name}: device types {list(fused.device_types)}, "
                    f"but its members share {sorted(common)}"
                )
            if not common and len(members) > 1:
                yield f"{fused.name}: no device type runs all its members"
            yield from self._kernels(fused)

    def _kernels(self, fused: FusedOperator) -> Iterator[str]:
        seen: set[tuple[str, int]] = set()
        for kernel in fused.kernels:
            if kernel.device_type not in fused.device_types:
                yield f"{fused.name}: a kernel of {kernel.device_type}, where it cannot run"
            if len(kernel.members) < 2 or not set(kernel.members) <= set(fused.members):
                yield f"{fused.name}: a kernel of {list(kernel.members)}, not all of them members"
            for member in kernel.members:
                if (kernel.device_type, member) in seen:
                    yield f"{fused.name}: member {member} in two kernels of {kernel.device_type}"
                seen.add((kernel.device_type, member))

    def order(self) -> Iterator[str]:
        fine = self.coarse.fine.operators
        for producer, consumer in self.coarse.fine.edges():
            if self.owner[producer] > self.owner[consumer]:
                yield (
                    f"not in topological order: {fine[consumer].name} in "
                    f"{self._name(self.owner[consumer])} depends on {fine[producer].name} in "
                    f"{self._name(self.owner[producer])}, which stands after it"
                )

    def tensors(self) -> Iterator[str]:
        given: dict[TensorRef, CoarseTensor] = {}
        for tensor in self.coarse.tensors:
            if tensor.source in given:
                yield f"{self._ref(tensor.source)}: two tensors have this source"
            given[tensor.source] = tensor
        needed = self._data()
        for ref, readers in needed.items():
            if ref not in given or not readers <= set(given[ref].consumers):
                readers_shown = ", ".join(self._name(k) for k in sorted(readers))
                yield f"{self._ref(ref)}: no tensor leads to all of its readers {readers_shown}"
        for tensor in given.values():
            yield from self._tensor(tensor, needed)
        yield from self._controls()

    def _tensor(self, tensor: CoarseTensor, needed: dict[TensorRef, set[int]]) -> Iterator[str]:
        ref, name = tensor.source, self._ref(tensor.source)
        if tensor.producer != self.owner[ref.producer]:
            yield f"{name}: its producer is not the fused operator that holds its source"
        if list(tensor.consumers) != sorted(set(tensor.consumers)) or not tensor.consumers:
            yield f"{name}: consumers {list(tensor.consumers)} are not ascending, or none"
        if tensor.producer in tensor.consumers:
            yield f"{name}: its producer is among its consumers"
        if ref.port < 0:
            if tensor.nbytes:
                yield f"{name}: a control dependency of {tensor.nbytes} bytes"
            return
        if set(tensor.consumers) - needed.get(ref, set()):
            yield f"{name}: a consumer does not read it"
        if tensor.nbytes != self.coarse.fine.spec(ref).nbytes:
            yield f"{name}: {tensor.nbytes} bytes, not those of the fine tensor"

    def _data(self) -> dict[TensorRef, set[int]]:
        needed: dict[TensorRef, set[int]] = {}
        for i, operator in enumerate(self.coarse.fine.operators):
            for ref in operator.inputs:
                if self.owner[ref.producer] != self.owner[i]:
                    needed.setdefault(ref, set()).add(self.owner[i])
        return needed

    def _controls(self) -> Iterator[str]:
        linked = {(t.producer, k) for t in self.coarse.tensors for k in t.consumers}
        required: set[tuple[int, int]] = set()
        for i, operator in enumerate(self.coarse.fine.operators):
            for control in operator.controls:
                pair = (self.owner[control], self.owner[i])
                required.add(pair)
                if pair[0] != pair[1] and pair not in linked:
                    yield (
                        f"{operator.name} must wait for "
                        f"{self.coarse.fine.operators[control].name}, but nothing says so"
                    )
        for tensor in self.coarse.tensors:
            for k in tensor.consumers if tensor.source.port < 0 else ():
                if (tensor.producer, k) not in required:
                    yield f"{self._ref(tensor.source)}: {self._name(k)} need not wait for it"

    def colocation(self) -> Iterator[str]:
        group_of = self._group_of()
        if sum(map(len, self.coarse.colocation)) > len(group_of):
            yield "a fused operator is in two colocation groups"
        for group in self.coarse.colocation:
            types = [set(self.coarse.operators[k].device_types) for k in group]
            if not set.intersection(*types):
                shown = ", ".join(self._name(k) for k in group)
                yield f"no device type runs all of a colocation group: {shown}"
        for fine_group in self.coarse.fine.colocation:
            owners = {self.owner[m] for m in fine_group.members}
            if len(owners) > 1 and len({group_of.get(k, -1 - k) for k in owners}) > 1:
                shown = ", ".join(self._name(k) for k in sorted(owners))
                yield f"not kept together ({fine_group.reason}): {shown}"

    def weights(self) -> Iterator[str]:
        """A variable that is read on another device would travel at every inference."""
        group_of = self._group_of()
        for tensor in self.coarse.tensors:
            source = self.coarse.fine.operators[tensor.source.producer]
            if source.op != "ReadVariableOp" or tensor.source.port < 0:
                continue
            home = self.coarse.operators[tensor.producer]
            for k in tensor.consumers:
                reader = self.coarse.operators[k]
                if self.coarse.fine.operators[reader.members[0]].op in CLIENT_OPS:
                    continue
                together = group_of.get(k, -1) == group_of.get(tensor.producer, -2)
                if not together and set(home.device_types) & set(reader.device_types):
                    yield f"{self._ref(tensor.source)}: may be sent to {reader.name}"

    def _group_of(self) -> dict[int, int]:
        return {k: number for number, group in enumerate(self.coarse.colocation) for k in group}

    def expansion(self, expansion: Expansion) -> Iterator[str]:
        if list(expansion.owner) != self.owner:
            yield "the expansion gives operators to other fused operators than the coarse graph"
        if list(expansion.names) != [fused.name for fused in self.coarse.operators]:
            yield "the expansion names other fused operators than the coarse graph"
        if list(expansion.fine_names) != [o.name for o in self.coarse.fine.operators]:
            yield "the expansion names other operators than the fine graph"

    def _name(self, k: int) -> str:
        return self.coarse.operators[k].name

    def _ref(self, ref: TensorRef) -> str:
        name = self.coarse.fine.operators[ref.producer].name
        return f"^{name}" if ref.port < 0 else f"{name}:{ref.port}"
