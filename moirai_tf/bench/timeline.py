"""What ran when on which device, and what moved between devices: predicted or measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from moirai_tf.errors import MoiraiError
from moirai_tf.fusion.coarse import CoarseGraph
from moirai_tf.rewrite.plan_file import PlannedSchedule, ScheduledOperator, ScheduledTransfer


@dataclass(frozen=True)
class Span:
    """Something that took time; nanoseconds from the start of the inference."""

    name: str
    """Fused operator; a kernel that belongs to none keeps its own name."""
    device: str
    start_ns: int
    finish_ns: int
    detail: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def duration_ns(self) -> int:
        """Time from start to finish."""
        return self.finish_ns - self.start_ns


@dataclass(frozen=True)
class TensorMove:
    """A tensor that went from one device to another."""

    source: str
    target: str
    span: Span | None
    """When it was on its way; None where nothing records it. Its name is the producer's."""
    producer: Span | None
    consumers: tuple[Span, ...]


@dataclass(frozen=True)
class Timeline:
    """One inference."""

    spans: tuple[Span, ...]
    """In order of their starts."""
    moves: tuple[TensorMove, ...]

    @property
    def makespan_ns(self) -> int:
        """The latest finish, of an operator or a transfer."""
        spans = [*self.spans, *(move.span for move in self.moves if move.span is not None)]
        return max((span.finish_ns for span in spans), default=0)


def predicted_timeline(schedule: PlannedSchedule, coarse: CoarseGraph) -> Timeline:
    """The timeline that a plan's schedule predicts.

    Raises:
      MoiraiError: the schedule is not one of this coarse graph.
    """
    operators = {operator.name: operator for operator in schedule.operators}
    if operators.keys() != {operator.name for operator in coarse.operators}:
        raise _stale("it names other operators")
    spans = {
        fused.name: _span(operators[fused.name], len(fused.members)) for fused in coarse.operators
    }
    moves = (_move(transfer, spans, coarse) for transfer in schedule.transfers)
    return Timeline(in_order(list(spans.values())), tuple(moves))


def in_order(spans: Sequence[Span]) -> tuple[Span, ...]:
    """By start; of those that start together the shorter first."""
    return tuple(sorted(spans, key=lambda span: (span.start_ns, span.finish_ns, span.name)))


def _span(operator: ScheduledOperator, members: int) -> Span:
    return Span(
        operator.name, operator.device, operator.start_ns, operator.finish_ns,
        {"operators": members},
    )  # fmt: skip


def _move(
    transfer: ScheduledTransfer, spans: Mapping[str, Span], coarse: CoarseGraph
) -> TensorMove:
    if transfer.producer not in spans or transfer.tensor >= len(coarse.tensors):
        raise _stale(f"tensor {transfer.tensor} of {transfer.producer!r} is none of the model's")
    tensor = coarse.tensors[transfer.tensor]
    readers = [coarse.operators[consumer].name for consumer in tensor.consumers]
    there = [spans[name] for name in readers if spans[name].device == transfer.target]
    if transfer.consumer is not None:
        there = [span for span in there if span.name == transfer.consumer]
    return TensorMove(
        transfer.source,
        transfer.target,
        Span(transfer.producer, transfer.target, transfer.start_ns, transfer.finish_ns,
             {"bytes": tensor.nbytes}),
        spans[transfer.producer],
        tuple(there),
    )  # fmt: skip


def _stale(what: str) -> MoiraiError:
    return MoiraiError(
        f"the schedule beside the plan does not fit the model: {what}",
        why="predicted and measured times of an operator are found by its name",
        fix="optimise the original model again with this version",
    )
