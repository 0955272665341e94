"""Whether a batch is divided, and into which shares: found by placing the divided model, too."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from moirai_tf.choice import COMPUTED_LEAST_GAIN, LEAST_GAIN
from moirai_tf.errors import MoiraiError
from moirai_tf.graph.graph import Graph
from moirai_tf.graph.importer import import_graph, shape_options
from moirai_tf.graph.options import ImportOptions
from moirai_tf.graph.prune import prune
from moirai_tf.model.saved_model import SavedModel, signature_def
from moirai_tf.pipeline import MoiraiItem, need
from moirai_tf.placement import Problem
from moirai_tf.split.divide import divide, obstacle_of
from moirai_tf.split.function import SCOPE
from moirai_tf.split.options import AUTO, ON, SplitOptions
from moirai_tf.split.separate import Separation, separation, up_to_the_obstacle
from moirai_tf.split.shares import RowsToTime, between, equal_finish, in_proportion

_SIZES = (7, 11)
"""Batch sizes that no other dimension of a model is likely to be."""
_WORTH_ANOTHER = 0.03
"""Predicted gain from which other shares are tried once more."""
_ELSEWHERE = 0.1
"""Part of the work that a device with a share may leave to others, such as the client's own."""
_NO_GPUS = (
    "the cluster has GPUs, for which predictions of divided batches are too low (docs/split.md); "
    "split=on divides all the same"
)
_LOGGER = logging.getLogger(__name__)

PlaceAgain = Callable[[MoiraiItem], MoiraiItem]
"""Profiles and places the graph of an item."""


@dataclass(frozen=True)
class _Batch:
    """The batch that the model is placed for."""

    rows: int
    separation: Separation

    def divides(self, operator: str) -> bool:
        """Whether shares compute an operator of the model."""
        return self.separation.cut is None or operator in self.separation.cut.names


def divided(item: MoiraiItem, options: SplitOptions, place_again: PlaceAgain) -> MoiraiItem:
    """The item placed with a divided batch if that is predicted to be faster, or asked for.

    Args:
      item: placed, its batch not divided.
      options: whether to divide.
      place_again: profiles and places the divided model as the item was.

    Raises:
      MoiraiError: `split` is 'on' and the batch cannot be divided.
    """
    try:
        if options.split == AUTO and any(d.type == "GPU" for d in item.cluster.devices):
            raise _Undivided(_NO_GPUS)
        batch = _batch_of(item)
        if options.split == AUTO and batch.rows < options.least_batch:
            raise _Undivided(f"it has {batch.rows} rows, fewer than least_batch")
        shares = _first_shares(item, batch, options)
        found = _placed(item, batch, shares, place_again)
        better = _better_shares(item, found, batch, shares)
        if better is not None:
            other = _placed(item, batch, better, place_again)
            found = min(found, other, key=_predicted_ns)
        gain = 1 - _predicted_ns(found) / _predicted_ns(item)
        least = COMPUTED_LEAST_GAIN if need(item.costs).computed else LEAST_GAIN
        if options.split == AUTO and gain < least:
            raise _Undivided(f"it would gain {gain:.0%}, less than {least:.0%}")
    except _Undivided as reason:
        if options.split == ON:
            raise MoiraiError(
                f"the batch cannot be divided: {reason}",
                why="split is 'on', and rows must be independent of each other to be divided",
                fix="leave split at 'auto', or change the model there",
            ) from reason
        _LOGGER.info("the batch is not divided: %s", reason)
        return replace(item, undivided=str(reason))
    return _compared(found, item)


def _compared(found: MoiraiItem, item: MoiraiItem) -> MoiraiItem:
    """With the best single device of the model as it was, whose batch is whole."""
    plan, known = need(found.plan), need(need(item.plan).summary)
    summary = replace(
        need(plan.summary),
        single_device=known.single_device,
        single_device_ns=known.single_device_ns,
        single_device_predicted_ns=known.single_device_predicted_ns,
    )
    return replace(found, plan=replace(plan, summary=summary))


class _Undivided(Exception):  # noqa: N818  a reason, no error
    pass


def _batch_of(item: MoiraiItem) -> _Batch:
    model, graph = need(item.model), need(item.graph)
    obstacle = obstacle_of(model, graph.tags, graph.signature)
    if obstacle:
        raise _Undivided(obstacle)
    first, second = (_with_rows(model, graph, size) for size in _SIZES)
    found = separation((prune(first), prune(second)), _SIZES)
    if found.obstacle:
        found = up_to_the_obstacle((first, second), _SIZES, found)
    if not found.separable:
        raise _Undivided(found.obstacle)
    rows = {_shape_of(graph, name)[0] for name, has_rows in found.inputs.items() if has_rows}
    if len(rows) > 1:
        raise _Undivided("its inputs have different numbers of rows")
    return _Batch(rows.pop(), found)


def _with_rows(model: SavedModel, graph: Graph, rows: int) -> Graph:
    """The graph for another number of rows in every input that takes any."""
    declared = signature_def(model.meta_graph(graph.tags), graph.signature).inputs
    shapes = []
    for name in graph.inputs:
        shape = _shape_of(graph, name)
        dims = list(declared[name].tensor_shape.dim) if name in declared else []
        any_rows = bool(shape and dims and dims[0].size < 0)
        sizes = (rows, *shape[1:]) if any_rows else shape
        shapes.append(f"{name}={','.join(map(str, sizes))}")
    options = ImportOptions(signature=graph.signature, tags=graph.tags, input_shapes=tuple(shapes))
    try:
        return import_graph(model, options)
    except MoiraiError as error:
        raise _Undivided(f"the model does not take {rows} rows: {error.rule}") from error


def _shape_of(graph: Graph, name: str) -> tuple[int, ...]:
    return graph.operators[graph.inputs[name]].outputs[0].shape or ()


def _first_shares(item: MoiraiItem, batch: _Batch, options: SplitOptions) -> dict[str, int]:
    """Shares by what each device takes for the whole batch, the largest first."""
    totals, rows = _totals(need(item.problem), batch.divides), batch.rows
    times: list[RowsToTime] = [in_proportion(total, rows) for total in totals.values()]
    shares = equal_finish(times, rows, options.most_shares)
    used = _used(totals, shares)
    if len(used) < 2:
        raise _Undivided("one device would get all rows")
    last = max(time(share) for time, share in zip(times, shares, strict=True))
    everything = min(_totals(need(item.problem), lambda _: True).values(), default=0.0)
    if options.split == AUTO and min(totals.values()) - last < LEAST_GAIN * everything:
        raise _Undivided("other devices are too slow to take rows off the fastest one")
    return used


def _totals(problem: Problem, counts: Callable[[str], bool]) -> dict[str, float]:
    """Device -> nanoseconds of the operators that count, on it.

    Devices that cannot run all of them are left out.
    """
    wanted = [o.compute_ns for o in problem.operators if counts(o.name)]
    least = [min((t for t in times if t is not None), default=0) for times in wanted]
    found = {}
    for k, device in enumerate(problem.devices):
        own = [times[k] for times in wanted]
        missing = sum(ns for ns, time in zip(least, own, strict=True) if time is None)
        total = sum(time for time in own if time is not None)
        if total and missing <= _ELSEWHERE * sum(least):
            found[device.name] = float(total + missing)
    return found


def _of_share(i: int) -> Callable[[str], bool]:
    scope = f"/{SCOPE}/share_{i}/"
    return lambda operator: scope in operator


def _used(devices: dict[str, float], shares: Sequence[int]) -> dict[str, int]:
    pairs = [(name, share) for name, share in zip(devices, shares, strict=True) if share]
    return dict(sorted(pairs, key=lambda pair: -pair[1]))


def _placed(
    item: MoiraiItem, batch: _Batch, shares: dict[str, int], place_again: PlaceAgain
) -> MoiraiItem:
    model, graph = need(item.model), need(item.graph)
    _LOGGER.info("trying shares of %s rows", ", ".join(f"{n}: {k}" for n, k in shares.items()))
    made, edit = divide(
        model, graph.tags, graph.signature, batch.separation, tuple(shares.values())
    )
    options = ImportOptions(
        signature=graph.signature,
        tags=graph.tags,
        input_shapes=tuple(shape_options(graph)),
    )
    graph = prune(import_graph(made, options))
    return place_again(replace(item, model=made, graph=graph, split=edit))


def _better_shares(
    item: MoiraiItem, found: MoiraiItem, batch: _Batch, shares: dict[str, int]
) -> dict[str, int] | None:
    """Shares that the times of the first ones lead to, if they gain enough to try them."""
    totals, rows = _totals(need(item.problem), batch.divides), batch.rows
    times: list[RowsToTime] = []
    for i, (name, share) in enumerate(shares.items()):
        known = _totals(need(found.problem), _of_share(i))
        if name not in known:
            return None
        times.append(between((share, known[name]), (rows, totals[name])))
    better = equal_finish(times, rows, len(times))
    before = max(time(share) for time, share in zip(times, shares.values(), strict=True))
    after = max(time(share) for time, share in zip(times, better, strict=True))
    if 0 in better or after > (1 - _WORTH_ANOTHER) * before:
        return None
    return dict(zip(shares, better, strict=True))


def _predicted_ns(item: MoiraiItem) -> int:
    return need(need(item.plan).summary).predicted_ns
